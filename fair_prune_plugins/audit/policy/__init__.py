"""A gate for pipelines: a policy of limits, judged on people with a stated confidence, that refuses or passes."""

from fair_prune_plugins.audit.policy.checking import check, verdict
from fair_prune_plugins.audit.policy.config import OVERALL, Policy, read_policy
from fair_prune_plugins.audit.policy.junit import as_junit
from fair_prune_plugins.audit.policy.markdown import as_markdown
from fair_prune_plugins.audit.policy.printing import print_check
from fair_prune_plugins.audit.policy.result import Finding, ModelCheck, PolicyCheck, Verdict
from fair_prune_plugins.audit.policy.rules import RULES, Rule

__all__ = [
    "OVERALL",
    "RULES",
    "Finding",
    "ModelCheck",
    "Policy",
    "PolicyCheck",
    "Rule",
    "Verdict",
    "as_junit",
    "as_markdown",
    "check",
    "print_check",
    "read_policy",
    "verdict",
]
