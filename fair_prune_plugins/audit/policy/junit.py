"""A check as JUnit XML, which CI systems show as test results: a suite per model, a case per rule and group."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from fair_prune_plugins.audit.policy.result import Finding, ModelCheck, PolicyCheck
from fair_prune_plugins.audit.policy.wording import sentence, setting

SUITES = "fair-prune check"

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def as_junit(check: PolicyCheck) -> str:
    """The check as JUnit XML.

    A broken rule is a failure. What cannot be told is skipped, or a failure where the policy is strict; groups too
    small to judge are skipped. Names of cases stay the same from run to run, so that CI systems can follow them.
    """
    root = ElementTree.Element("testsuites", {"name": SUITES, "time": "0"})
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for model in check.models:
        suite = _suite(model, check)
        for key in total:
            total[key] += int(suite.attrib[key])
        root.append(suite)
    root.attrib.update({key: str(count) for key, count in total.items()})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False).join(
        ['<?xml version="1.0" encoding="UTF-8"?>\n', "\n"]
    )


def _suite(model: ModelCheck, check: PolicyCheck) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": _clean(model.model), "time": "0"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("dense", check.dense),
        ("confidence", f"{check.confidence:g}"),
        ("comparisons", str(check.comparisons)),
        ("simultaneous", str(check.simultaneous).lower()),
        ("resamples", str(check.resamples)),
        ("minimum_group", str(check.minimum)),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    failures = skipped = 0
    for finding in model.findings:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _clean(model.model), "name": _clean(_name(finding)), "time": "0"}
        )
        refusing = finding.verdict == "broken" or (model.strict and finding.verdict == "cannot be told")
        said = _clean(sentence(finding))
        if refusing:
            failures += 1
            failure = ElementTree.SubElement(case, "failure", {"message": said, "type": finding.rule})
            failure.text = said
        elif finding.verdict == "holds":
            ElementTree.SubElement(case, "system-out").text = said
        else:
            skipped += 1
            ElementTree.SubElement(case, "skipped", {"message": said})
    ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(setting(check)))
    counts = {"tests": len(model.findings), "failures": failures, "errors": 0, "skipped": skipped}
    suite.attrib.update({key: str(count) for key, count in counts.items()})
    return suite


def _name(finding: Finding) -> str:
    return f"{finding.rule}: {finding.where}"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
