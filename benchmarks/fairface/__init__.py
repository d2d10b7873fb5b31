"""Perceived gender from faces: a first run, and the study of criteria and losses."""
