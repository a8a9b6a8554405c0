"""The report: one page that shows what is there, says what is not, and never breaks."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dreamshard.console.report import build, facts, learning, main, write_report
from dreamshard.console.report.material import gather
from dreamshard.console.report.page import Chart
from dreamshard.errors import DataError, DreamshardError
from dreamshard.runfolder import RunFolder
from tests.unit.dreamshard.console.report.made_runs import (
    Config,
    DataPart,
    make_demo,
    make_run,
)

TITLES = {
    "probe": "What a few labels are worth",
    "inputs": "The images that went in",
    "samples": "What the teacher draws from noise",
    "features": "What the teacher sees",
    "statistics": "What the levels hold",
    "losses": "How they learned",
    "throughput": "Where the time went",
    "made": "What is on disk",
    "again": "How to make it again",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(demo: Path) -> str:
    return build(demo)


@pytest.fixture(autouse=True)
def quick_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw charts for the one page above only: they are tested elsewhere, and slow."""
    monkeypatch.setattr(learning, "_chart", lambda draw, alt: Chart(b"light", b"dark", alt))


class Outline(HTMLParser):
    """Check that tags are balanced; collect addresses, headings and which tags there are."""

    VOID = frozenset("meta img source br".split())

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        wanted = ("src", "srcset", "href")
        self.addresses += [value or "" for name, value in attrs if name in wanted]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert not found.open
    return found


def section(html: str, name: str) -> str:
    """Return the HTML of one section."""
    found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert found, name
    return found.group(1)


def test_page_needs_no_other_file_and_no_script(page: str) -> None:
    found = outline(page)
    assert found.addresses
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 3_000_000


def test_page_has_every_section_in_order(page: str) -> None:
    text = outline(page).text
    places = [text.index(title) for title in TITLES.values()]
    assert places == sorted(places)
    assert "Cannot be shown" not in text


def test_headline_names_the_subject_and_how_far_it_is_ahead(page: str) -> None:
    text = " ".join(outline(page).text.split())
    assert "57.0 % distilled student, 1 label per class; next best 54.0 (+3.0)" in text
    assert "81.2 % distilled student, 5 labels per class; next best 83.0 (-1.8)" in text
    assert page.count('class="tile best"') == 1
    assert "24 images with 3 levels of features" in text


def test_probe_marks_the_best_of_each_column_and_counts_paired_wins(page: str) -> None:
    probe = section(page, "probe")
    best = re.findall(r'<td class="[^"]* best">([^<]*)</td>', probe)
    assert best == ["83.0 ± 2.8", "57.0 ± 4.2"]
    text = outline(probe).text
    assert "+5.0 ± 7.1 (won 1 of 2, 1 tied)" in text
    assert "-1.8 ± 1.1 (won 0 of 2)" in text


def test_features_show_every_map_finest_first_and_leave_vectors_out(page: str) -> None:
    shown = section(page, "features")
    names = re.findall(r"<b>([^<]*)</b>", shown)
    assert names == ["image", "up.2.t50", "up.1.t50"]
    assert "8 × 8 cells of 5, stride 2" in shown


def test_disk_section_lists_tree_arrays_and_keys(page: str, demo: Path) -> None:
    made = section(page, "made")
    dataset = gather(demo).dataset
    assert dataset is not None
    assert dataset.recipe.content_key in made
    assert "├── datasets/" in made
    assert "demo/" in made
    assert "24 of 24 images, 1 unusable" in made
    row = next(line for line in made.split("<tr>") if "up.1.t50</td>" in line)
    assert "192" in row  # 6 x 4 x 4 float16


def test_commands_and_configurations_are_shown_without_secrets(page: str) -> None:
    again = section(page, "again")
    commands = outline(again).text
    assert "dreamshard train --config recipes/digits/train.yaml" in commands
    assert "steps: 40" in commands
    assert "numpy" in commands
    assert "hunter2" not in page


@pytest.mark.parametrize(
    ("gone", "names"),
    [
        ("teacher/samples.png", ["samples"]),
        ("datasets", ["inputs", "features", "statistics"]),
        ("train-001/evaluate/results.json", ["probe"]),
        ("train-001/metrics.jsonl", []),
    ],
)
def test_sections_of_what_is_not_there_are_left_out(
    gone: str, names: list[str], demo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo, tmp_path / "demo")
    (folder / "encode" / "stats.json").unlink()
    place = folder / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    html = build(folder)
    there = set(re.findall(r'<section id="([^"]*)">', html))
    assert there == set(TITLES) - set(names)
    assert "Cannot be shown" not in html


def test_one_run_alone_finds_its_dataset_and_names_its_own_next_command(
    demo: Path, tmp_path: Path
) -> None:
    dataset = gather(demo).dataset
    assert dataset is not None
    config = Config(data=DataPart(dataset=dataset.url))
    folder = make_run(tmp_path / "alone", "train", config=config, loss=1.0)
    record = RunFolder(folder, config=config, command=["dreamshard", "train"])
    record.finish(f"dreamshard evaluate --student {folder} --tasks [knn]")
    html = build(folder)
    assert dataset.recipe.content_key in outline(html).text
    following = " ".join(outline(section(html, "next")).text.replace("\\", "").split())
    assert following.endswith(f"dreamshard evaluate --student {folder} --tasks [knn]")


def test_a_dataset_alone_shows_its_levels_and_how_to_train_on_it(demo: Path) -> None:
    dataset = gather(demo).dataset
    assert dataset is not None
    html = build(Path(dataset.url))
    assert section(html, "features").count("<img") == 3
    shown = " ".join(outline(html).text.replace("\\", "").split())
    assert f"dreamshard train --data.dataset {dataset.url}" in shown
    rows = section(html, "statistics").split("<tr>")
    assert [re.findall(r"<td[^>]*>([^<]*)</td>", row)[0] for row in rows[2:]] == [
        "up.1.t50",
        "up.2.t50",
        "up.1.t50.gap",
    ]
    assert 'id="again"' not in html


def test_every_task_is_shown_with_the_tables_that_were_printed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "judged", "evaluate")
    results = {
        "student": "runs/r18",
        "knn": {
            "rows": {"pixels": {"1": {"mean": 31.0}}, "distilled student": {"1": {"mean": 44.5}}}
        },
        "detection": {"rows": {"distilled student": {"bbox": {"map": 12.0, "map_large": None}}}},
        "tables": {
            "knn": [
                {
                    "title": "% correct by nearest neighbours",
                    "header": ["representation", "k = 1"],
                    "lines": [["pixels", "31.0"], ["distilled student", "44.5 s"]],
                }
            ]
        },
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    html = build(folder)
    knn = section(html, "knn")
    assert "44.5 s" in knn and "% correct by nearest neighbours" in knn
    assert "distilled student, k = 1: 44.5 %" in knn, "told under the pointer"
    assert '<tr class="ours"><td class="">distilled student' in knn
    assert "12.0" in section(html, "detection") and "map_large" not in html
    text = " ".join(outline(html).text.split())
    headline = "distilled student, nearest neighbours of frozen features, k = 1"
    assert f"44.5 % {headline}; next best 31.0 (+13.5)" in text


@pytest.mark.parametrize(
    "results",
    [
        {"knn": {"rows": {"a": {"1": "<b>much"}}}},
        {"knn": {"rows": {"a": {"1": 1}}}, "tables": {"knn": [{"lines": [[1]]}]}},
        {"few_label": {"rows": [], "paired": 3, "subject": None}},
        {"knn": {"rows": {"a": 3}}},
        {"student": 7, "knn": None},
    ],
)
def test_results_of_another_form_cost_their_section_only(
    results: dict[str, object], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "judged", "evaluate")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    html = build(folder)
    outline(html)
    assert "<b>much" not in html
    assert 'id="again"' in html


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.resolved.yaml", "data: null"),
        ("config.resolved.yaml", "data: [1]"),
        ("environment.json", '{"packages": 1, "variables": "x", "cpus": "many"}'),
        ("stats.json", '{"seconds": {}, "img_per_s": [], "teacher": 5, "dataset": []}'),
        ("demo.json", '{"runs": [1], "seconds": 3, "dataset": null}'),
        ("demo.json", '{"runs": {"train": 4}, "seconds": {"4": "x"}}'),
        ("metrics.jsonl", '{"step": 1e308, "loss": -1e308}\n{"step": "x"}\n[]\n'),
    ],
)
def test_records_of_another_form_end_no_page(name: str, text: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "train")
    (folder / name).write_text(text, encoding="utf-8")
    outline(build(folder))


@pytest.mark.parametrize("name", ["metrics.jsonl", "README.txt", "samples.png", "knn.png"])
def test_a_pipe_or_a_device_among_records_is_not_read(name: str, tmp_path: Path) -> None:
    for place, verb in (("teacher/run", "pretrain"), ("judged", "evaluate")):
        folder = make_run(tmp_path / place, verb)
        (folder / "results.json").write_text('{"knn": {"rows": {"a": {"1": 1}}}}')
        for target in (folder / name, folder.parent / name):
            target.unlink(missing_ok=True)
        os.mkfifo(folder / name)
    (tmp_path / "teacher" / name).symlink_to("/dev/zero")
    outline(build(tmp_path))


def test_an_evaluation_and_its_training_find_each_other(tmp_path: Path) -> None:
    train = make_run(tmp_path / "runs" / "r18", "train", loss=2.0)
    other = make_run(tmp_path / "runs" / "other", "evaluate")
    judged = make_run(tmp_path / "runs" / "r18-eval", "evaluate")
    for folder, student in ((judged, train), (other, tmp_path / "runs" / "r50")):
        (folder / "results.json").write_text(json.dumps({"student": str(student)}))
    found = gather(train).evaluate
    assert found is not None and found.path.name == "r18-eval"
    back = gather(judged).train
    assert back is not None and back.path == train


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = []
    for name, steps, accuracy in (("a", 40, 50.0), ("b", 80, 60.0), ("c", 40, None)):
        folder = make_run(tmp_path / name, "train", config=Config(steps=steps), loss=3.0)
        if accuracy is not None:
            judged = make_run(folder / "evaluate", "evaluate")
            rows = {"pixels": {"1": 99.0}, "distilled student": {"1": accuracy}}
            (judged / "results.json").write_text(json.dumps({"knn": {"rows": rows}}))
        folders.append(folder)
    path = write_report(*folders)
    assert path == tmp_path / "comparison.html"
    html = path.read_text(encoding="utf-8")
    knn = section(html, "knn")
    assert re.findall(r'<td class="[^"]* best">([^<]*)</td>', knn) == ["60.0"]
    assert "Not evaluated so: c." in knn and "99.0" not in knn
    settings = re.findall(r"<td[^>]*>([^<]*)</td>", section(html, "settings"))
    assert settings == ["steps", "40", "80", "40"]
    assert section(html, "losses").count("polyline class") == 3
    assert {"script", "link"}.isdisjoint(outline(html).tags)


def test_damaged_shards_are_named_and_the_rest_is_shown(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "demo")
    (folder / "encode" / "stats.json").unlink()
    chunk = next((folder / "datasets").glob("*/data.zarr/up.1.t50/c/0/*/*/*"))
    chunk.write_bytes(chunk.read_bytes()[:-5])
    html = build(folder)
    assert str(chunk.relative_to(tmp_path)) in section(html, "features")
    assert "Cannot be shown" not in section(html, "probe")


def test_text_of_runs_cannot_become_markup(tmp_path: Path) -> None:
    config = Config(note="<script>alert(1)</script>")
    folder = make_run(tmp_path / "<b>run</b>", "train", config=config, loss=1.0)
    html = build(folder)
    assert "<script>" not in html
    assert "<b>run" not in html
    assert "<script>alert(1)</script>" in outline(html).text


def test_newest_run_is_shown_unless_demo_json_names_another(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "demo")
    make_run(folder / "train-002", "train", loss=1.0)
    newest = gather(folder).train
    assert newest is not None and newest.path.name == "train-002"
    index = {"runs": {"train": "train-001"}, "seconds": {"train-001": 77.0, "train-002": 1.0}}
    (folder / "demo.json").write_text(json.dumps(index), encoding="utf-8")
    material = gather(folder)
    assert material.train is not None and material.train.path.name == "train-001"
    assert material.seconds == {"train": 77.0}


def test_main_writes_the_page_where_asked(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "page.html"
    assert main([str(demo / "train-001" / "evaluate"), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(out) in capsys.readouterr().out


def test_nothing_to_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*dreamshard demo"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither a run nor a dataset"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_page_that_cannot_be_written_says_so(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DreamshardError, match=r"cannot be written .*--out"):
        write_report(demo / "train-001" / "evaluate", out=tmp_path / "file" / "page.html")


def test_missing_packages_name_the_extra(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DreamshardError, match=r"jinja2 is not installed.*pip install dreamshard"):
        write_report(demo / "train-001" / "evaluate")


def test_long_commands_are_broken_into_lines_that_a_shell_joins() -> None:
    assert facts.wrapped("dreamshard train --steps 5") == "dreamshard train --steps 5"
    long = "dreamshard train " + " ".join(f"--setting_{number} {number}" for number in range(9))
    lines = facts.wrapped(long).split("\n")
    assert len(lines) == 10
    assert shlex.split("".join(line.removesuffix("\\") for line in lines)) == shlex.split(long)


def test_what_the_monitor_saw_is_a_table_of_few_rows_and_not_a_loss(tmp_path: Path) -> None:
    record = RunFolder(tmp_path / "train", config=Config(), command=["dreamshard", "train"])
    for step in range(1, 41):
        record.log(step=step, loss=1 / step, memory_gb=1.0)
        if step % 2 == 0:
            record.log(step=step, monitor_knn=20.0 + step)
    material = gather(tmp_path)
    assert material.train is not None
    (table,) = learning.monitor_tables(material.train)
    assert table.heads == ["step", "knn"] and len(table.rows) <= 12
    assert table.rows[-1].cells == ["40", "60.0"], "the last look is always shown"
    assert learning.losses(material).tables == [table]


def test_terms_of_the_loss_are_a_table_of_value_weight_and_gradient(tmp_path: Path) -> None:
    record = RunFolder(tmp_path / "train", config=Config(), command=["dreamshard", "train"])
    for step in (10, 20, 30):
        beside = {"gradient.feature.mse": 0.5 / step, "weight.feature.mse": 2.0}
        record.log(step=step, loss=2.0 / step, **{"feature.mse": 1.0 / step}, **beside)
    material = gather(tmp_path)
    assert material.train is not None
    (table,) = learning.term_tables(material.train)
    assert table.heads[1:3] == ["step 10", "step 30"]
    assert table.rows[0].cells == ["feature.mse", "0.1", "0.0333", "2", "0.05", "0.0167"]
    assert set(learning.loss_lines(material.train)) == {"loss", "feature.mse"}
    assert learning.losses(material).tables == [table]


def test_runs_that_a_page_leaves_out_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("one", "two")):
        made = make_run(tmp_path / name, "train")
        os.utime(made / "command.txt", (number, number))
    make_run(tmp_path / "seen", "encode")
    assert gather(tmp_path).train is not None
    (said,) = [record.getMessage() for record in caplog.records]
    assert "2 runs of train below, the newest is shown" in said and "/two;" in said
