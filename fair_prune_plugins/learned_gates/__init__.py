"""Gates that are learned: BiFP, BiP and AutoBot, as pruners for Torch-Pruning."""

from fair_prune_plugins.learned_gates.autobot import AutoBotReport
from fair_prune_plugins.learned_gates.autobot_pruner import AutoBotPruner
from fair_prune_plugins.learned_gates.bifp import BiFPPruner, BiPPruner
from fair_prune_plugins.learned_gates.bilevel import BiFPReport
from fair_prune_plugins.learned_gates.by_name import LEARNED, LearnedMethod
from fair_prune_plugins.learned_gates.gates import LearnedGates
from fair_prune_plugins.learned_gates.importance import LearnedGateImportance
from fair_prune_plugins.learned_gates.macs import GatedMacs
from fair_prune_plugins.learned_gates.settings import AutoBotSettings, BiFPSettings
from fair_prune_plugins.learned_gates.surrogate import FairnessTerm

__all__ = [
    "LEARNED",
    "AutoBotPruner",
    "AutoBotReport",
    "AutoBotSettings",
    "BiFPPruner",
    "BiFPReport",
    "BiFPSettings",
    "BiPPruner",
    "FairnessTerm",
    "GatedMacs",
    "LearnedGateImportance",
    "LearnedGates",
    "LearnedMethod",
]
