"""Which rules a run judges by, how severe they are and what fails; and that a mistyped code never makes a run green."""

from __future__ import annotations

import pytest

from plugin.helpers import READ_ITEMS, assert_refused, collected, failed, outcomes, report_of, rerun_lines


def codes(result):
    """The rules that a run collected, without the item ``discovery``."""
    return [line.partition("::")[2] for line in collected(result) if not line.endswith("::discovery")]


@pytest.fixture
def chosen(audit, checkpoint):
    checkpoint()
    return lambda *options, **how: codes(audit("--collect-only", "-q", *options, **how))


READ = READ_ITEMS[1:]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--deaddir-select=DD001,DD003"], ["DD001", "DD003"]),
        (["--deaddir-select=DD001", "--deaddir-select=DD003"], ["DD001", "DD003"]),
        (["--deaddir-select=DD001", "--deaddir-extend-select=DD003"], ["DD001", "DD003"]),
        (
            ["--deaddir-select=DD00", "--deaddir-ignore=DD005, DD006"],
            [c for c in READ if c[:4] == "DD00" and c not in ("DD005", "DD006")],
        ),
        (["--deaddir-ignore=DD00"], [code for code in READ if not code.startswith("DD00")]),
        (["--deaddir-ignore=DD", "--deaddir-extend-select=DD001"], ["DD001"]),
    ],
    ids=" ".join,
)
def test_rules_are_chosen_by_code_or_prefix(chosen, options, expected):
    assert chosen(*options) == expected


def test_a_rule_that_is_not_chosen_finds_nothing_in_reports_and_fixtures_either(audit, checkpoint, pytester):
    checkpoint(nan="transformer.ln_f", tiny="transformer.h.0.ln_1")
    pytester.makepyfile(
        test_mine="""
        def test_one(deaddir_audit):
            assert [finding["code"] for finding in deaddir_audit.findings] == ["DD002"]
        """
    )
    result = pytester.runpytest_inprocess(
        "--deaddir-model=m", "--deaddir-level=read", "--deaddir-ignore=DD001", "--deaddir-report=out.json"
    )
    assert result.ret == 0
    (model,) = report_of("out.json")
    assert [finding["code"] for finding in model["findings"]] == ["DD002"]
    assert model["checks"]["planned"] == len(READ) - 1


def test_the_header_says_how_many_rules_are_left_out(audit, checkpoint):
    checkpoint()
    audit("--deaddir-ignore=DD001,DD002").stdout.fnmatch_lines(["deaddir rules: * from the catalogue; 2 not selected"])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--deaddir-select=DD1O1",
            "--deaddir-select DD1O1: no rule has this code, nor one that begins so, did you mean DD101?",
        ),
        ("--deaddir-ignore=dead-coordinates", "--deaddir-ignore dead-coordinates: rules go by their code here, DD002"),
        ("--deaddir-extend-select=ACME", "--deaddir-extend-select ACME: no rule has this code"),
        ("--deaddir-select=DD001,,DD002", "--deaddir-select DD001,,DD002: a code is missing"),
        ("--deaddir-select=", "a code is missing"),
        ("--deaddir-severity=DD002=eror", "did you mean error?"),
        ("--deaddir-severity=DD002", "write DD002=SEVERITY, one of error, warning, info"),
        ("--deaddir-severity=DD02=error", "--deaddir-severity DD02: no rule has this code, nor one that begins so"),
        ("--deaddir-fail-on=info", "--deaddir-fail-on info: not one of error, warning"),
        ("--deaddir-ignore=DD", "--deaddir-select and --deaddir-ignore leave no rule to judge by"),
        (
            "--deaddir-select=DD101",
            "m: no rule that was selected can be answered at level read, only from level forward on",
        ),
    ],
)
def test_a_choice_that_cannot_be_meant_is_a_usage_error(audit, checkpoint, option, says):
    checkpoint()
    assert_refused(audit(option), says)


def test_every_mistake_of_a_choice_is_told_at_once(audit, checkpoint):
    checkpoint()
    result = audit(
        "--deaddir-select=QQ1,QQ2", "--deaddir-ignore=QQ3", "--deaddir-severity=QQ4=loud", "--deaddir-fail-on=never"
    )
    assert_refused(result, "QQ1", "QQ2", "QQ3", "QQ4", "QQ4=loud", "never")


def test_the_ini_twins_choose_and_the_command_line_replaces_each(pytester, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    pytester.makeini(
        "[pytest]\ndeaddir_model = m\ndeaddir_level = read\ndeaddir_select =\n    DD001\n    DD002, DD003\n"
        "deaddir_ignore = DD003\ndeaddir_severity = DD002=error\n"
    )
    result = pytester.runpytest_inprocess()
    assert list(outcomes(result)) == ["m::discovery", "m::DD001", "m::DD002"]
    assert failed(result) == ["m::DD002"]
    result = pytester.runpytest_inprocess("--deaddir-select=DD002", "--deaddir-severity=DD002=info")
    assert list(outcomes(result)) == ["m::discovery", "m::DD002"]
    assert failed(result) == []


def test_a_severity_of_ones_own_decides_what_fails_and_is_what_is_shown(audit, checkpoint):
    checkpoint(tiny="transformer.ln_f", nan="transformer.h.0.ln_1")
    result = audit("--deaddir-severity=DD002=error,DD001=warning", "--deaddir-report=out.json")
    assert failed(result) == ["m::DD002"]
    (model,) = report_of("out.json")
    assert {finding["code"]: finding["severity"] for finding in model["findings"]} == {
        "DD001": "warning",
        "DD002": "error",
    }
    result.stdout.fnmatch_lines(["DD002 error *", "DD001 warning *"])  # the gravest first


@pytest.mark.parametrize(("fail_on", "fails"), [("error", []), ("warning", ["m::DD002"])])
def test_warnings_fail_where_they_are_to(audit, checkpoint, fail_on, fails):
    checkpoint(tiny="transformer.ln_f")
    result = audit(f"--deaddir-fail-on={fail_on}", "--deaddir-report=out.json")
    assert failed(result) == fails
    assert result.ret == len(fails)
    (model,) = report_of("out.json")
    assert (model["checks"]["failed"], model["checks"]["warned"]) == (len(fails), 1 - len(fails))
    (finding,) = model["findings"]
    assert finding["severity"] == "warning"  # which it stays


def test_information_never_fails(audit, checkpoint):
    checkpoint(tiny="transformer.ln_f")
    assert failed(audit("--deaddir-fail-on=warning", "--deaddir-severity=DD002=info")) == []


def test_the_re_run_of_a_failing_check_fails_in_the_same_way(audit, checkpoint, pytester):
    checkpoint(tiny="transformer.ln_f")
    pytester.makeini("[pytest]\ndeaddir_ignore = DD\n")
    first = audit("--deaddir-fail-on=warning", "--deaddir-extend-select=DD002", "--deaddir-severity=DD001=info")
    (arguments,) = rerun_lines(first)
    again = pytester.runpytest_inprocess(*arguments)
    assert list(outcomes(again).items()) == [("m::DD002", "failed")]


def test_workers_choose_alike(audit, checkpoint):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (dependency group test)")
    checkpoint(tiny="transformer.ln_f")
    result = audit("-n", "1", "--deaddir-select=DD002", "--deaddir-fail-on=warning")
    assert outcomes(result) == {"m::discovery": "passed", "m::DD002": "failed"}
