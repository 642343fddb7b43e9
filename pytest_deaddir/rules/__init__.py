"""Rules: what makes one, where they come from, which are chosen, and what they find.

    vocabulary   the words of a rule file, and what can be wrong with one
    row          a row as a rule in Python sees it
    definition   Rule
    toml         rules in TOML
    python       rules in Python: @rule
    load         files, folders, entry points, the hook
    select       by code or prefix; severities
    judge        rule × table → findings
    examples     a rule against rows of which the outcome is known
    schema       the JSON Schema of a rule file, for editors

The catalogue itself is the folder ``rules/`` at the top of the repository; the wheel carries it as ``catalogue``.
"""

from pytest_deaddir.rules.definition import Example as Example
from pytest_deaddir.rules.definition import Rule as Rule
from pytest_deaddir.rules.definition import shipped_rules as shipped_rules
from pytest_deaddir.rules.examples import Checked as Checked
from pytest_deaddir.rules.examples import check_rule as check_rule
from pytest_deaddir.rules.judge import Verdict as Verdict
from pytest_deaddir.rules.judge import evaluate as evaluate
from pytest_deaddir.rules.judge import formatted as formatted
from pytest_deaddir.rules.judge import judge as judge
from pytest_deaddir.rules.load import Source as Source
from pytest_deaddir.rules.load import entry_points as entry_points
from pytest_deaddir.rules.load import load_rules as load_rules
from pytest_deaddir.rules.python import rule as rule
from pytest_deaddir.rules.row import RowView as RowView
