"""Policies: named, versioned lists of rules that turn scores into keep, drop or review. Pure."""

from dqs.policy.files import (
    PolicyFile,
    find_policies,
    load_policies,
    load_policy,
    parse_policy,
)
from dqs.policy.policy import OPERATORS, Decision, Policy, Reasons, Rule

__all__ = [
    "OPERATORS",
    "Decision",
    "Policy",
    "PolicyFile",
    "Reasons",
    "Rule",
    "find_policies",
    "load_policies",
    "load_policy",
    "parse_policy",
]
