"""The contract suite, for every registered strategy and for yours.

from cl_framework.testing import contract_suite

test_contract = contract_suite("my_strategy")
"""

from cl_framework.testing.contract import CHECKS, Check, Subject
from cl_framework.testing.suite import Report, applicable, check_strategy, contract_suite

__all__ = ["CHECKS", "Check", "Report", "Subject", "applicable", "check_strategy", "contract_suite"]
