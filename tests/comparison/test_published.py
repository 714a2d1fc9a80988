"""Published numbers: the files say what the papers say, and `compare` sets a report against them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtlcli import published, registry, yamlfile
from mtlcli.comparison.report import SINGLE_TASK
from mtlcli.errors import MtlError
from mtlcli.published import Published

TABLES = [published.get(name) for name in published.names()]
RANGES = {"fraction": (0.0, 100.0), "percent": (0.0, 100.0), "degrees": (0.0, 90.0), "nats": (0.0, 1.0)}
NOT_REPRODUCED = {("nyuv2_mtan", "IMTL-G"), ("nyuv2_mtan", "IMGrad")}


def each_table() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


# -- the data ----------------------------------------------------------------------------------------------------------


def test_every_file_is_a_table_of_its_own_name() -> None:
    assert {"nyuv2_mtan", "cityscapes_deeplab", "qm9", "qm9_retuned", "celeba", "office_31"} <= set(published.names())
    assert [table.name for table in TABLES] == list(published.names())


@each_table()
def test_every_source_is_used_and_every_row_says_something(table: Published) -> None:
    assert {scores.source for scores in table.scores()} == set(table.sources)
    assert all(row.values or row.delta is not None for row in table.rows)
    assert all(source.url.startswith("https://") for source in table.sources.values())


@each_table()
def test_methods_are_those_of_reports(table: Published) -> None:
    for row in table.rows:
        if row.method is not None:
            loss, _, gradient = row.method.partition("+")
            assert loss in registry.loss_weightings.names()
            assert gradient == "" or gradient in registry.gradient_weightings.names()
            assert gradient != "sum"  # reports leave it out


@each_table()
def test_what_a_row_asks_of_its_method_is_an_option_of_it(table: Published) -> None:
    for row in table.rows:
        for key in row.protocol:
            section, _, option = key.rpartition(".")
            if section.startswith("weighting."):
                assert row.method is not None
                loss, _, gradient = row.method.partition("+")
                among: Any = {
                    "weighting.loss": (registry.loss_weightings, loss),
                    "weighting.gradient": (registry.gradient_weightings, gradient),
                }[section]
                assert option in among[0].get(among[1]).Options.model_fields


@each_table()
def test_values_are_plausible(table: Published) -> None:
    base = table.baseline.values
    for scores in table.scores():
        for task, values in scores.values.items():
            for name, value in values.items():
                metric = table.metrics[task][name]
                low, high = RANGES.get(metric.unit, (0.0, 1e3))
                assert low < value < high
                if name in ("f1", "auroc"):
                    assert value < 1
                assert round(value, metric.decimals) == pytest.approx(value, abs=1e-6)
                assert 0.25 < value / base[task][name] < 4  # a slipped decimal point


def rounding(table: Published) -> float:
    """By how many percent delta may be off because values and delta are printed with so many decimals only."""
    off = [
        [
            100 * 0.5 * 10**-metric.decimals / table.baseline.values[task][name]
            for name, metric in table.metrics[task].items()
        ]
        for task in table.metrics
    ]
    if table.convention == "delta_m":
        return statistics.fmean(error for errors in off for error in errors) + 0.005
    return statistics.fmean(statistics.fmean(errors) for errors in off) + 0.005


def test_published_deltas_follow_from_values_and_baseline() -> None:
    """By the table's convention, within rounding; what does not reproduce says so in its note."""
    recomputed, off = 0, set()
    for table in TABLES:
        for row in table.rows:
            ours = table.delta(row.values)
            if ours is None or row.delta is None:
                continue
            recomputed += 1
            if abs(ours - row.delta) > rounding(table):
                off.add((table.name, row.name))
                assert row.note is not None
                assert f"{ours:.2f}" in row.note
                assert f"{row.delta:.2f}" in row.note
    assert off == NOT_REPRODUCED
    assert recomputed == 39


@each_table()
def test_the_baseline_is_no_better_than_itself(table: Published) -> None:
    if table.convention is not None and table.name not in ("qm9_retuned", "qm9_libmtl"):
        assert table.delta(table.baseline.values) == 0


# -- reading -----------------------------------------------------------------------------------------------------------

OWN: dict[str, Any] = {
    "name": "own",
    "title": "Two tasks",
    "dataset": "made_up",
    "protocol": {"model.encoder.name": "mlp", "train.epochs": 5},
    "conditions": {"split": "by year"},
    "convention": "delta_p",
    "metrics": {
        "a": {"auroc": {"unit": "percent", "higher_is_better": True, "decimals": 1}},
        "b": {
            "mae": {"unit": "meV", "higher_is_better": False, "decimals": 0},
            "r2": {"unit": "", "higher_is_better": True, "decimals": 2},
        },
    },
    "baseline": {"name": "STL", "source": "paper", "values": {"a": {"auroc": 80.0}, "b": {"mae": 4000, "r2": 0.5}}},
    "sources": {
        "paper": {
            "authors": "Doe & Roe",
            "title": "Sharing",
            "venue": "ICML",
            "year": 2024,
            "url": "https://example.org",
            "table": "Table 3",
        }
    },
    "rows": [
        {
            "method": "uw",
            "name": "UW",
            "source": "paper",
            "values": {"a": {"auroc": 88.0}},
            "delta": 3.0,
            "note": "odd",
        },
        {"method": "ew", "name": "Mixture", "source": "paper", "delta": 1.0, "protocol": {"model.trunk.name": "mmoe"}},
        {"method": "ew", "name": "Bottom", "source": "paper", "delta": 2.0, "protocol": {"model.trunk.name": "hps"}},
        {"method": "famo", "name": "FAMO", "source": "paper", "delta": 2.0, "protocol": {"weighting.loss.lr": 0.1}},
        {"method": None, "name": "Secret", "source": "paper", "delta": 9.0},
    ],
    "notes": ["read with care"],
}


def own(tmp_path: Path, **changes: Any) -> Published:
    path = tmp_path / "own.yaml"
    path.write_text(yamlfile.dump({**OWN, **changes}))
    return published.get(path)


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(
        MtlError,
        match=r"no published table 'nyuv2_mtam'; did you mean 'nyuv2_mtan'\?; there are: .*aliexpress_es.*path",
    ):
        published.get("nyuv2_mtam")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    assert own(tmp_path).rows[0].method == "uw"
    assert published.get(str(tmp_path / "own.yaml")) == own(tmp_path)
    with pytest.raises(MtlError, match=r"no\.yaml: no such file; .* holds own\.yaml"):
        published.get(tmp_path / "no.yaml")
    (tmp_path / "own.yaml").write_text("- 1\n")
    with pytest.raises(MtlError, match=r"own\.yaml: should be a map with the keys name, title, dataset"):
        published.get(tmp_path / "own.yaml")


def test_mistakes_in_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(MtlError) as raised:
        own(tmp_path, convention="delta_n", metric={}, baseline={"name": "STL", "sorce": "paper"})
    text = str(raised.value)
    assert "own.yaml, line " in text
    assert "convention: should be one of delta_m, delta_p or null; found 'delta_n'; did you mean 'delta_p'?" in text
    assert "metric: unknown key; did you mean 'metrics'?" in text
    assert "baseline.sorce: unknown key; did you mean 'source'?" in text
    assert "baseline.source: is required" in text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"source": "papre"}, "'UW': no source 'papre'; did you mean 'paper'?; the table has paper"),
        ({"values": {"c": {"mae": 1.0}}}, "'UW': no task 'c'; the table has a, b"),
        ({"values": {"b": {"mea": 1.0}}}, "'UW': no metric of b 'mea'; did you mean 'mae'?; the table has mae, r2"),
    ],
)
def test_references_within_a_file_are_checked(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(MtlError) as raised:
        own(tmp_path, rows=[{**OWN["rows"][0], **row}])
    assert words in str(raised.value)


def test_rows_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MtlError, match="'uw' stands a second time; tell the rows apart by their `protocol`"):
        own(tmp_path, rows=[OWN["rows"][0]] * 2)
    with pytest.raises(MtlError, match="'UW' has a delta; say by which `convention`"):
        own(tmp_path, rows=OWN["rows"][:1], convention=None)


def test_both_conventions_by_hand(tmp_path: Path) -> None:
    """Gains in percent: a.auroc +10, b.mae -25 (higher error), b.r2 +20."""
    values = {"a": {"auroc": 88.0}, "b": {"mae": 5000, "r2": 0.6}}
    assert own(tmp_path).delta(values) == pytest.approx((10 + (-25 + 20) / 2) / 2)
    assert own(tmp_path, convention="delta_m").delta(values) == pytest.approx(-(10 - 25 + 20) / 3)
    assert own(tmp_path).delta({"a": {"auroc": 88.0}}) is None


# -- against a report --------------------------------------------------------------------------------------------------


def settings(method: str, **changes: Any) -> dict[str, Any]:
    loss, _, gradient = method.partition("+")
    return {
        "model.encoder.name": "mlp",
        "model.trunk.name": "hps",
        "weighting.loss.name": loss,
        "weighting.loss.lr": 0.1,
        "weighting.gradient.name": gradient or "sum",
        "train.epochs": 5,
    } | {key.replace("__", "."): value for key, value in changes.items()}


def made(methods: dict[str, dict[str, dict[str, float | None]]], **changes: Any) -> dict[str, Any]:
    """A report in other units than the table's: auroc as a fraction, mae in eV."""
    units = {"auroc": ("fraction", True), "mae": ("eV", False), "r2": ("", True)}
    tasks: dict[str, list[str]] = {"a": ["auroc"], "b": ["mae", "r2"]}
    return {
        "dataset": "made_up",
        "baseline": SINGLE_TASK,
        "metrics": {
            task: {n: {"unit": units[n][0], "higher_is_better": units[n][1]} for n in names}
            for task, names in tasks.items()
        },
        "rows": [
            {
                "method": method,
                "tasks": {t: {n: {"mean": v, "std": None} for n, v in of.items()} for t, of in values.items()},
                "delta_m": {"mean": -7.0, "std": None},
                "delta_p": {"mean": 7.0, "std": None},
            }
            for method, values in methods.items()
        ],
    } | changes


SINGLE: dict[str, dict[str, float | None]] = {"a": {"auroc": 0.8}, "b": {"mae": 4.0, "r2": 0.5}}
BETTER: dict[str, dict[str, float | None]] = {"a": {"auroc": 0.9}, "b": {"mae": 2.0, "r2": 0.6}}


def test_values_gaps_and_delta_in_the_published_units(tmp_path: Path) -> None:
    """uw gains 12.5 on a.auroc, 50 on b.mae and 20 on b.r2: delta_p is (12.5 + 35) / 2 = 23.75, the paper's 3."""
    report = made({SINGLE_TASK: SINGLE, "uw": BETTER})
    found = published.compare(own(tmp_path), report, [settings("uw"), settings("ew")])
    json.dumps(found, allow_nan=False)
    single, uw = found["rows"]
    assert (uw["method"], uw["name"], uw["note"]) == ("uw", "UW", "odd")
    assert uw["source"] == "Doe & Roe, Sharing, ICML 2024, Table 3"
    assert uw["tasks"] == {
        "a": {
            "auroc": {
                "published": 88.0,
                "ours": pytest.approx(90),
                "gap": pytest.approx(2),
                "unit": "percent",
                "higher_is_better": True,
            }
        }
    }  # and nothing for b, which the paper does not print
    assert uw["delta"] == {
        "published": 3.0,
        "ours": pytest.approx(23.75),
        "gap": pytest.approx(20.75),
        "baseline": "STL",
    }
    assert single["name"] == "STL"
    assert single["tasks"]["b"]["mae"]["ours"] == pytest.approx(4000)
    assert single["tasks"]["b"]["mae"]["gap"] == pytest.approx(0)
    assert single["delta"]["published"] == 0
    assert "a.auroc: ours is converted from fraction to percent" in found["notes"]
    assert "b.mae: ours is converted from eV to meV" in found["notes"]
    assert "read with care" in found["notes"]
    assert any("split: by year" in note for note in found["notes"])


def test_without_the_papers_baseline_delta_is_against_our_own(tmp_path: Path) -> None:
    table = own(tmp_path, baseline={"name": "STL", "source": "paper"})
    (uw,) = published.compare(table, made({SINGLE_TASK: SINGLE, "uw": BETTER}), [settings("uw")])["rows"]
    assert uw["delta"] == {"published": 3.0, "ours": 7.0, "gap": 4.0, "baseline": SINGLE_TASK}
    (uw,) = published.compare(table, made({"uw": BETTER}, baseline="ew"), [settings("uw")])["rows"]
    assert uw["delta"] is None


def test_a_report_with_fewer_metrics_has_no_delta(tmp_path: Path) -> None:
    report = made({"uw": {"a": {"auroc": None}, "b": {"mae": 2.0, "r2": 0.6}}})
    (uw,) = published.compare(own(tmp_path), report, [settings("uw")])["rows"]
    assert (uw["tasks"], uw["delta"]) == ({}, None)
    report = made({"uw": BETTER})
    del report["metrics"]["b"]
    found = published.compare(own(tmp_path), report, [settings("uw")])
    assert found["rows"][0]["delta"] is None
    assert "published, but not in the report: b.mae, b.r2" in found["notes"]


def test_rows_are_told_apart_by_what_their_own_runs_say(tmp_path: Path) -> None:
    report = made({"ew": BETTER, "uw [train.seed=3]": BETTER, "famo": BETTER, "gls": BETTER})
    recipes = [settings("ew"), settings("uw"), settings("famo", weighting__loss__lr=0.2), settings("gls")]
    found = published.compare(own(tmp_path), report, recipes)
    assert [row["name"] for row in found["rows"]] == ["Bottom", "UW"]
    assert (
        "not published in this table: famo (weighting.loss.lr: should be 0.1; found 0.2), gls" in found["notes"]
    )  # the learning rate of other methods' weights does not matter


def test_nested_recipes_are_read_too(tmp_path: Path) -> None:
    nested = {"model": {"encoder": {"name": "mlp"}}, "train": {"epochs": 6}}
    assert published.differences(own(tmp_path).protocol, [nested]) == ["train.epochs: should be 5; found 6"]


def test_other_protocols_are_refused_with_every_key(tmp_path: Path) -> None:
    recipes = [settings("uw"), settings("uw", train__epochs=6), {"model.encoder.nam": "mlp", "train.epochs": 7}]
    with pytest.raises(MtlError) as raised:
        published.compare(own(tmp_path), made({"uw": BETTER}), recipes)
    assert str(raised.value) == (
        "these runs cannot be compared with the published table 'own' (Two tasks):\n"
        "  model.encoder.name: should be 'mlp'; found no such key; did you mean 'model.encoder.nam'?\n"
        "  train.epochs: should be 5; found 6, 7\n"
        f"Train by that protocol, or name another table: {', '.join(published.names())}"
    )


def test_other_data_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    report = made({"uw": BETTER}, dataset="census", metrics={"income": {"auroc": {"unit": "nats"}}})
    with pytest.raises(MtlError) as raised:
        published.compare(own(tmp_path), report, [settings("uw", train__epochs=6)])
    assert str(raised.value).splitlines()[1:-1] == [
        "  dataset: should be made_up; found census",
        "  metrics: none in common; should be a (auroc in percent), b (mae in meV, r2); found income (auroc in nats)",
        "  train.epochs: should be 5; found 6",
    ]


def test_other_units_and_directions_do_not_match(tmp_path: Path) -> None:
    metrics = {
        "a": {"auroc": {"unit": "nats", "higher_is_better": True}},
        "b": {"mae": {"unit": "eV", "higher_is_better": True}, "r2": {"unit": "", "higher_is_better": True}},
    }
    factors, notes, missing = published.match(own(tmp_path), metrics)
    assert (factors, missing) == ({("b", "r2"): 1.0}, [])
    assert notes == [
        "a.auroc is left out: published in percent, ours is in nats",
        "b.mae is left out: published as lower is better, and ours is the other way round",
    ]


def test_many_tasks_make_a_short_message() -> None:
    with pytest.raises(MtlError, match=r"bald \(f1 in fraction\) and 35 more; found a \(auroc") as raised:
        published.compare(published.get("celeba"), made({"uw": BETTER}), [settings("uw")])
    assert "dataset: should be celeba; found made_up" in str(raised.value)


def test_reading_tables_needs_no_torch() -> None:
    script = "import sys, mtlcli.published as p\np.get('celeba')\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
