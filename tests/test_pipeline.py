"""The whole pipeline through the command line, on the grid world."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lamina.cli import main, parse
from lamina.data.sampling import open_source
from lamina.errors import LaminaError
from lamina.inference.encode import encode_pairs, frame_pairs
from lamina.models.hub import LatentActionModel

torch.set_num_threads(1)
TRAIN = ["--image", "32", "32", "--size", "debug", "--slots", "4", "--decoder", "unet", "--steps", "12", "--batch", "8",
         "--checkpoint-every", "6", "--validate-every", "6", "--log-every", "1", "--device", "cpu", "--workers", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a trained run, its translator and its policy."""
    home = tmp_path_factory.mktemp("home")
    assert main(["collect", "grid", "--out", str(home / "data"), "--episodes", "12", "--size", "32", "32"]) == 0
    train = ["train", "flexlam", "--data", str(home / "data"), "--out", str(home / "run"), *TRAIN]
    assert main(train) == 0
    align = ["align", str(home / "run"), "--data", str(home / "data"), "--labels", "40", "--steps", "30"]
    assert main(align) == 0
    policy = ["policy", str(home / "run"), "--data", str(home / "data"), "--size", "debug", "--context", "6", "--stride", "4",
              "--steps", "6", "--batch", "4", "--checkpoint-every", "3", "--device", "cpu"]  # fmt: skip
    assert main(policy) == 0
    return home


def test_the_log_has_step_and_loss(home: Path) -> None:
    rows = [json.loads(line) for line in (home / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert {"validation/reconstruction", "validation/reconstruction_with_another_latent"} <= rows[-1].keys()
    assert "validation/perplexity/slot_1" in rows[-1]


def test_labels_are_columns_of_a_lerobot_dataset(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "labelled"
    assert main(["label", str(home / "run"), str(home / "data"), "--out", str(out)]) == 0
    source = open_source(out)
    model = LatentActionModel.from_pretrained(str(home / "run"))
    episode = source.episodes[3]
    size = model.config.image[1:]
    frames = source.frames(episode, source.cameras[0], 0, episode.length, size)  # type: ignore[arg-type]
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    partner, reached = frame_pairs(episode.times, 0.15)
    expected = model.encode(pictures, pictures[partner])
    stored = source.column(episode, "latent_action")
    np.testing.assert_allclose(stored, expected.post.flatten(1).numpy(), atol=1e-5)
    np.testing.assert_array_equal(source.column(episode, "latent_action.index"), expected.index.numpy())
    valid = source.column(episode, "latent_action.valid")[:, 0].astype(bool)
    np.testing.assert_array_equal(valid, reached)
    assert valid.any() and not valid[-1]
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["features"]["latent_action"]["shape"] == [4 * 5]
    assert "latent_action" in json.loads((out / "meta" / "stats.json").read_text())
    note = json.loads((out / "meta" / "lamina.json").read_text())
    assert len(note["checkpoint"]) == 64 and note["gap_seconds"] == pytest.approx(0.15) and note["lamina"]
    video = next((home / "data" / "videos").rglob("*.mp4"))
    assert (out / video.relative_to(home / "data")).read_bytes() == video.read_bytes()


def test_interrupted_labelling_resumes_to_the_same_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lamina.inference import label as stage
    from lamina.inference import labeller

    whole, resumed = home / "whole", home / "resumed"
    stage.label(home / "run", str(home / "data"), whole)
    encode, calls = encode_pairs, [0]

    def dies(*args: object) -> object:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(labeller, "encode_pairs", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.label(home / "run", str(home / "data"), resumed)
    assert not resumed.exists()
    stage.label(home / "run", str(home / "data"), resumed)
    assert calls[0] == 5 + 12 - 4  # the four finished episodes were not encoded again
    for path in whole.rglob("*.parquet"):
        assert path.read_bytes() == (resumed / path.relative_to(whole)).read_bytes(), path.name


def test_a_folder_of_video_gets_one_row_a_frame(home: Path) -> None:
    videos = home / "videos"
    videos.mkdir()
    source = next((home / "data" / "videos").rglob("*.mp4"))
    shutil.copy(source, videos / "mine.mp4")
    assert main(["label", str(home / "run"), str(videos), "--out", str(home / "from-video")]) == 0
    (episode,) = open_source(videos).episodes
    rows = sum(pq.read_table(p).num_rows for p in (home / "from-video" / "data").rglob("*.parquet"))
    assert rows == episode.length


def test_evaluate_writes_verdict_controls_and_pictures(home: Path) -> None:
    run = home / "run"
    weights = (run / "model" / "model.safetensors").read_bytes()
    place = ["--environments", f"{home / 'data'}:observation.images.paired"]
    assert main(["evaluate", str(run), "--data", str(home / "data"), "--reconstructions", "32", *place]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    names = {row["name"] for row in record["translator"]}
    assert {"shuffled latents", "copy-frame", "observation-only", "random-weights encoder"} <= names
    assert {row["k"] for row in record["translator"] if row["role"] == "model"} == {1, 2, 4}
    assert {"copy-frame", "mean latent", "shuffled latents"} <= {row["name"] for row in record["reconstruction"]}
    for row in record["reconstruction"]:
        assert row["psnr"]["low"] <= row["psnr"]["mean"] <= row["psnr"]["high"] and row["lpips"] is None
    assert record["verdict"] and all(item["text"] for item in record["verdict"])
    assert record["labels"] == 40 and len(record["codes"]["slots"]) == 4
    structure = record["structure"]
    assert {r["role"] for r in structure["rows"]} == {"model", "control", "reference"} and len(
        structure["records"][0]["horizons"]
    ) == 5
    (path, *_) = structure["trajectories"]  # the grid tells no state: a length and no displacement
    assert path["length"][0] <= max(path["length"]) == 1 and not path["displacement"] and path["r"] is None
    assert [row["name"] for row in record["leakage"]][-1] == "chance" and record["leakage"][-1]["leak"]["mean"] == 0.5
    assert any("names the environment" in item["text"] for item in record["verdict"])
    assert any("Structure of the latent" in item["text"] for item in record["verdict"])
    html = (run / "report.html").read_text()
    assert "Does the latent say where it was taken?" in html and "how far from its first frame" in html
    assert "Do the latents add up?" in html and "composition residual" in html
    assert "data:image/png;base64" in html and record["verdict"][0]["text"].split(":")[0] in html
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert "PSNR at k = 4" in (run / "model" / "README.md").read_text()
    # The grid has paired views: what is exogenous is told without being asked for.
    rows = {row["name"]: row for row in record["exogenous"]}
    assert rows["swap, against the next frame"]["psnr"]["mean"] < rows["reconstruction"]["psnr"]["mean"] + 0.1
    assert 0 <= rows["another exogenous state of the next frame"]["change"]["mean"] < 2
    assert any("of the change between unrelated transitions" in item["text"] for item in record["verdict"])
    assert "Exogenous state" in html and (run / "pictures" / "swap.png").exists()


def test_a_model_of_features_is_judged_without_pictures(home: Path) -> None:
    run = home / "features"
    small = [
        "--size",
        "debug",
        "--image",
        "32",
        "32",
        "--slots",
        "2",
        "--steps",
        "2",
        "--batch",
        "8",
        "--device",
        "cpu",
    ]
    assert main(["train", "lapo", "--space", "ema", "--data", str(home / "data"), "--out", str(run), *small]) == 0
    assert main(["evaluate", str(run), "--data", str(home / "data"), "--structure", "0"]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert [row["name"].split()[0] for row in record["exogenous"]] == ["another", "another"] and not record["pictures"]
    assert any("of the change between unrelated transitions" in item["text"] for item in record["verdict"])
    assert "change of the latent over chance" in (run / "report.html").read_text()


def test_a_run_decides_in_closed_loop(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "returns.json"
    call = [
        "rollout",
        str(home / "run"),
        "--world",
        "grid",
        "--episodes",
        "3",
        "--parallel",
        "2",
        "--k",
        "2",
        "--out",
        str(out),
    ]
    assert main(call) == 0
    record = json.loads(out.read_text())
    grid = record["worlds"]["grid"]
    assert record["k"] == 2 and len(grid["returns"]) == len(grid["lengths"]) == 3 and not grid["lost"]
    assert grid["mean"] == pytest.approx(np.mean(grid["returns"])) and "grid" in capsys.readouterr().out
    assert main(call) == 0  # the same seed plays the same episodes
    assert json.loads(out.read_text())["worlds"] == record["worlds"]


def test_a_policy_of_another_model_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    other = LatentActionModel.from_pretrained(str(run))
    torch.manual_seed(1)
    for weight in other.lam.encoder.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    shutil.rmtree(run / "model")
    other.save_pretrained(run / "model")
    assert main(["rollout", str(run), "--world", "grid", "--episodes", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lamina: ") and "policy" in error


def test_joint_alignment_moves_the_model(home: Path) -> None:
    run = home / "run"
    align = [
        "align",
        str(run),
        "--data",
        str(home / "data"),
        "--labels",
        "40",
        "--steps",
        "4",
        "--joint",
        "--batch",
        "8",
    ]
    assert main(align) == 0
    before = LatentActionModel.from_pretrained(str(run)).state_dict()
    after = LatentActionModel.from_pretrained(str(run / "joint" / "model")).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if ".encoder." in name)
    shutil.rmtree(run / "joint")


def test_a_partner_is_the_nearest_frame_after_the_gap() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.5, 0.6])
    partner, valid = frame_pairs(times, 0.2)
    # 0.3 is nearer to 0.2 than to 0.5; after 0.5 there is no frame near 0.7: the frame itself, and not valid.
    assert partner.tolist() == [2, 2, 3, 3, 4]
    assert valid.tolist() == [True, True, True, False, False]
    steady = np.arange(30) / 10
    assert (frame_pairs(steady, 0.15)[0][:-1] == np.arange(1, 30)).all()  # a tie goes to the earlier frame, every time
    alone, none = frame_pairs(np.array([0.0]), 0.2)
    assert alone.tolist() == [0] and none.tolist() == [False]


def spoil_truncate(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def spoil_version(run: Path) -> None:
    path = run / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "unknown command 'fly'"),
        (["train", "flexlm", "--data", "x", "--out", "y"], "did you mean flexlam"),
        (["train", "flexlam", "--data", "{tmp}/none", "--out", "{tmp}/new"], "{tmp}/none"),
        (["train", "flexlam", "--data", "{home}/data", "--out", "{home}/run"], "--resume"),
        (["train", "flexlam", "--data", "{home}/data", "--out", "{tmp}/new", "--gap", "900", "900"], "gap"),
        (["train", "flexlam", "--data", "{home}/data", "--out", "{tmp}/new", "--image", "30", "30"], "multiple"),
        (["train", "flexlam", "--data", "{home}/data", "--out", "{tmp}/new", "--steps", "0"], "--steps"),
        (["train", "flexlam", "--data", "{home}/data", "--out", "{tmp}/new", "--camera", "top"], "top"),
        (["align", "{home}/run", "--data", "{home}/data", "--labels", "many"], "--labels many"),
        (["align", "{home}/run", "--data", "{home}/data", "--labels", "100000"], "100000"),
        (["align", "{tmp}", "--data", "{home}/data"], "{tmp}"),
        (["evaluate", "{tmp}/none", "--data", "{home}/data"], "{tmp}/none"),
        (["evaluate", "{home}/run", "--data", "{home}/data", "--paired", "mirror"], "has no camera 'mirror'"),
        (["label", "{home}/run", "{home}/data", "--out", "{home}/data"], "{home}/data"),
        (["reproduce", "flexlam/prefix-scalin"], "flexlam/prefix-scaling"),
        (["reproduce", "flexlam/prefix-scaling", "--scale", "huge"], "huge"),
        (["policy", "{tmp}/none", "--data", "{home}/data"], "{tmp}/none"),
        (["policy", "{home}/run", "--data", "{home}/data"], "--resume"),
        (["rollout", "{home}/run", "--world", "grid", "--k", "0"], "got 0"),
        (["rollout", "{home}/run", "--world", "grid", "--k", "5"], "got 5"),
        (["rollout", "{home}/run", "--world", "gird"], "gird"),
        (["rollout", "{tmp}/none", "--world", "grid"], "{tmp}/none"),
        (["rollout", "random", "--world", "grid", "--episodes", "0"], "episodes"),
        (["collect", "doomsday", "--out", "{tmp}/new"], "doomsday"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], said: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(text: str) -> str:
        return text.replace("{home}", str(home)).replace("{tmp}", str(tmp_path))

    before = sorted(home.iterdir())
    assert main([fill(a) for a in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    mistakes = [line for line in error if line.startswith("lamina: ")]
    assert len(mistakes) == 1 and fill(said) in mistakes[0]
    assert "Traceback" not in "".join(error)
    assert not list(tmp_path.iterdir()) and sorted(home.iterdir()) == before


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_version])
def test_a_damaged_model_is_named(
    spoil: object, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    spoil(tmp_path / "run")  # type: ignore[operator]
    assert main(["label", str(tmp_path / "run"), str(home / "data"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(tmp_path / "run" / "model") in error and not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(LaminaError):
        main(["--debug", "train", "flexlm"])


@pytest.mark.parametrize(
    "command", ["collect", "train", "align", "label", "evaluate", "policy", "rollout", "reproduce"]
)
def test_every_command_has_an_example_in_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        main([command, "--help"])
    except SystemExit as ended:
        assert not ended.code
    assert f"lamina {command} " in capsys.readouterr().out.split("Example", 1)[1]


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_parse_runs_nothing(tmp_path: Path) -> None:
    parse(["train", "flexlam", "--data", "nowhere", "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        parse(["train", "flexlam", "--nonsense", "1"])


STAGES = {
    "train": ["flexlam", "--data", "x", "--out", "y"],
    "align": ["run", "--data", "x"],
    "label": ["run", "x", "--out", "y"],
    "evaluate": ["run", "--data", "x"],
    "policy": ["run", "--data", "x"],
    "rollout": ["run", "--world", "grid"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_a_device_and_a_precision(
    stage: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parse([stage, *STAGES[stage], "--device", "auto", "--precision", "bf16"])
    if torch.cuda.is_available():
        return
    real = {"run": str(home / "run"), "x": str(home / "data"), "y": str(tmp_path / "new")}
    arguments = [real.get(word, word) for word in STAGES[stage]]
    if stage == "policy":
        shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
        arguments[0] = str(tmp_path / "run")
    if stage == "align":
        shutil.copytree(home / "run" / "model", tmp_path / "run" / "model")
        arguments = [str(tmp_path / "run"), "--data", str(home / "data"), "--labels", "40"]
    assert main([stage, *arguments, "--device", "cuda"]) == 2
    assert "--device cuda: this machine has none" in capsys.readouterr().err


def test_every_stage_runs_in_bf16(home: Path, tmp_path: Path) -> None:
    """From alignment to closed loop, on a method whose latent action is continuous: its token policy reads the codes."""
    run, data = str(tmp_path / "run"), str(home / "data")
    bf16 = ["--device", "cpu", "--precision", "bf16"]
    train = [word for word in TRAIN if word not in ("--slots", "4")]
    assert main(["train", "alam", "--data", data, "--out", run, "--slots", "4", *train, "--precision", "bf16"]) == 0
    align = ["align", run, "--data", data, "--labels", "40", "--steps", "10", *bf16]
    assert main(align) == 0
    assert json.loads((tmp_path / "run/translator/translator.json").read_text())["side"] == "continuous"
    policy = [
        "policy",
        run,
        "--data",
        data,
        "--size",
        "debug",
        "--context",
        "6",
        "--stride",
        "4",
        "--steps",
        "4",
        "--batch",
        "4",
        *bf16,
    ]
    assert main(policy) == 0
    rollout = ["rollout", run, "--world", "grid", "--episodes", "2", "--parallel", "2", "--max-steps", "4", *bf16]
    assert main(rollout) == 2  # the translator reads what a token model does not predict
    shutil.rmtree(tmp_path / "run" / "translator")
    assert main([*align, "--side", "quantised"]) == 0
    assert main([*rollout, "--out", str(tmp_path / "returns.json")]) == 0
    record = json.loads((tmp_path / "returns.json").read_text())
    assert len(record["worlds"]["grid"]["returns"]) == 2 and record["temperature"] == 0.0
    small = ["--transitions", "32", "--reconstructions", "8", "--structure", "8", "--linear", "64"]
    assert main(["evaluate", run, "--data", data, *small, *bf16]) == 0
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["budget"]["steps"] == told["budget"]["scratch_steps"] == 10 and told["summary"]
    assert "steps of 64 labels" in (tmp_path / "run" / "report.html").read_text()


def test_a_model_card_names_the_columns_to_use(tmp_path: Path) -> None:
    from lamina import methods

    for name, column, slots in (
        ("flexlam", "latent_action", "all slots"),
        ("alam", "latent_action.continuous", "all slots"),
        ("univla", "latent_action", "slots 4 to 7 of 8"),
    ):
        module = methods.load(name)
        LatentActionModel(module.build(module.Config(size="debug", image=(16, 16)))).save_pretrained(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert f"use `{column}` ({slots}" in card


def test_one_short_clip_is_evaluated_and_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        for n in range(40):
            picture = np.full((32, 32, 3), 90, np.uint8)
            picture[8:16, n % 24 : n % 24 + 8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    run, clip = str(tmp_path / "run"), str(tmp_path / "clip.mp4")
    assert main(["train", "flexlam", "--data", clip, "--out", run, *TRAIN]) == 0
    assert main(["evaluate", run, "--data", clip]) == 0
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert any("structure was not measured" in note for note in record["notes"])
    assert record["reconstruction"] and (tmp_path / "run" / "pictures" / "transfer.png").exists()


def test_control_characters_in_names_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "run\x1b[2J\udcff"), "--data", "x"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"run\x1b[2J\udcff" in said
