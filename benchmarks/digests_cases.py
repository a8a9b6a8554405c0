"""Command lines of `benchmarks/digests.py` whose exit codes and texts are kept."""

from __future__ import annotations

VERBS_OF_RECIPES = {
    "pretrain": "pretrain",
    "pretrain_cpu": "pretrain",
    "encode": "encode",
    "encode_timm": "encode",
    "soft_labels": "encode",
    "synthesize": "synthesize",
    "interpret": "interpret",
    "serve": "serve",
    "train": "train",
    "train_online": "train",
    "evaluate": "evaluate",
    "evaluate_coco": "evaluate",
}
"""File name of a recipe -> the verb it is for."""
PRINTED = (*dict.fromkeys(VERBS_OF_RECIPES.values()), "publish", "plan")

NOISE = ["--teacher.kind", "noise", "--teacher.levels", "[s2,s4]", "--image.size", "16"]
RECIPE = "recipes/digits/"


def _encode(words: str) -> list[str]:
    return ["encode", "--source.kind", "digits", *NOISE, *words.split()]


def _recipe(verb: str, words: str = "", *, recipe: str = "") -> list[str]:
    return [verb, "--config", f"{RECIPE}{recipe or verb}.yaml", *words.split()]


CONFIG_CASES: dict[str, list[str]] = {
    "verb": ["encdoe"],
    "unknown": _encode("--sed 3"),
    "several": _encode("--sed 3 --micro_batch many --max_invalid_share 7 stray --fsync"),
    "place": _encode("--timesteps [3]"),
    "type": _encode("--teacher 3 --samples '5' --seed true --actors 1.5 --teacher.levels s4"),
    "missing-file": ["train", "--config", "nowhere.yaml"],
    "broken-files": [
        *("encode", "--config", "broken.yaml", "--config", "twice.yaml"),
        *("--config", "scalar.yaml", "--teacher.levels", "[a"),
    ],
    "numbers": ["encode", "--config", "numbers.yaml"],
    "levels": _encode("--teacher.levels [up.7,s4] --teacher.timesteps [1000]"),
    "levels-twice": _encode("--teacher.levels [s4,s4] --teacher.top_k 3"),
    "no-levels": _encode("--teacher.levels []"),
    "teacher-kind": _encode("--teacher.kind nois"),
    "teacher-class": _encode("--teacher.kind no_such_module:Teacher"),
    "teacher-settings": [*_encode("--teacher.settings"), "{channels: 0, chanels: 3}"],
    "teacher-missing": _recipe("encode"),
    "teacher-empty": _recipe("encode", "--teacher.path empty-teacher"),
    "teacher-odd": _recipe("encode", "--teacher.path odd-teacher"),
    "teacher-not-json": _recipe("encode", "--teacher.path not-json"),
    "teacher-evil": _recipe("encode", "--teacher.path evil.pt"),
    "teacher-other": _recipe("encode", "--teacher.path other.pt"),
    "teacher-cut": _recipe("encode", "--teacher.path cut.pt"),
    "biggan-missing": ["synthesize", "--teacher.kind", "biggan", "--teacher.path", "nowhere.pth"],
    "biggan-encode": _encode("--teacher.kind biggan --teacher.path nowhere.pth"),
    "inspect-teacher": ["inspect", "teacher", "nowhere"],
    "inspect-teacher-other": ["inspect", "teacher", "other.pt"],
    "source-kind": _encode("--source.kind diggits"),
    "source-path": _encode("--source.kind folder"),
    "source-split": _encode("--source.split test"),
    "source-nowhere": _encode("--source.kind folder --source.path nowhere"),
    "source-empty": _encode("--source.kind folder --source.path no-images"),
    "source-column": _encode(
        "--source.kind parquet --source.path images/images.parquet --source.image_column picture"
    ),
    "source-not-parquet": _encode("--source.kind parquet --source.path a-file"),
    "source-class": _encode("--source.kind no_such_module:Source"),
    "image-width": ["encode", "--teacher.kind", "noise", "--image.width", "16"],
    "codec": _encode("--codec int9"),
    "codec-tar": _encode("--codec int8+zstd --format tar"),
    "codec-for-none": [*_encode("--codec"), "{default: int8, s32: int4, b99: float16}"],
    "codec-rank": _encode("--codec lowrank99-int8"),
    "codec-exotic": [*_encode("--codec"), "{s2: lowrank0-int8, s4: zstd+zstd}"],
    "gpus": _encode("--device cuda"),
    "gpus-cpu": _encode("--device cpu --gpus_per_actor 1"),
    "no-end": ["synthesize", "--samples", "null"],
    "unwritable": _encode("--root a-file/data"),
    "plan": ["plan", *_encode("--samples 1000 --rate 100 --codec dct16")],
    "plan-assumed": ["plan", "encode", "--config", "recipes/imagenet-adm-resnet50/encode.yaml"],
    "plan-synthesize": ["plan", "--config", "recipes/imagenet-biggan-resnet50/synthesize.yaml"],
    "pretrain": [
        *_recipe("pretrain", "--warmup_steps 500 --image.size 18 --crop 20 --sample_steps 2000"),
        *("--unet.norm_num_groups", "7", "--unet.attention_levels", "[5]"),
    ],
    "pretrain-labels": _recipe(
        "pretrain", "--class_conditional true --source.kind folder --source.path images/folder"
    ),
    "interpret": ["interpret", "--teacher.kind", "noise", "--draw", "evn"],
    "interpret-classes": _recipe("interpret", recipe="../camvid/interpret"),
    "interpret-masks": [
        *("interpret", "--teacher.kind", "noise", "--teacher.levels", "[s4]", "--image.size"),
        *("16", "--target", "mask", "--classes", "[a,b]"),
    ],
    "train-nothing": ["train"],
    "train-several": [
        *("train", "--method", "dreamtaecher", "--save_every", "15", "--monitor.every", "7"),
        *("--data.crop", "[3]", "--data.image_size", "[1]", "--data.levels", "[a,a]"),
        *("--dreamteacher.pool_scales", "[]", "--simsiam.augment.jitter", "[1]"),
    ],
    "train-missing": _recipe("train"),
    "train-kind": _recipe("train", "--data.kind live"),
    "train-class": _recipe("train", "--method no_such_module:Method"),
    "train-stream": _recipe(
        "train", "--data.stream.codec dct16 --data.stream.window 0", recipe="train_online"
    ),
    "train-stream-keep": _recipe(
        "train", "--data.stream.keep true --data.stream.max_attempts 9", recipe="train_online"
    ),
    "train-mix": [
        *_recipe("train", "--data.stream.mix", recipe="train_online"),
        "[{mode: shards}, {mode: encode, dataset: x}]",
    ],
    "serve": _recipe("serve", "--window 0 --fresh_noise true --keep true --halve_on_oom true"),
    "evaluate": _recipe("evaluate", "--tasks [few_labl,segmentation,detection] --image.views 2"),
    "evaluate-lists": _recipe(
        "evaluate", "--tasks [knn] --knn.k [] --linear_probe.protocols [] --finetune.fractions []"
    ),
    "evaluate-missing": _recipe("evaluate"),
    "publish": ["publish", "--out", "a-file", "--formats", "[]"],
    "publish-missing": ["publish", "--student", "nowhere", "--out", "published"],
    "report-missing": ["report", "nowhere"],
    "demo-seed": ["demo", "--seed", "-1", "--out", "demo"],
    "ls-missing": ["ls", "nowhere"],
    "ls-empty": ["ls", "no-images"],
    "inspect-missing": ["inspect", "nowhere"],
    "verify-missing": ["verify", "nowhere"],
    "export-missing": ["export", "nowhere", "copies"],
    "gc-missing": ["gc", "nowhere"],
    "pin-missing": ["pin", "nowhere"],
    "drop-missing": ["drop", "nowhere", "key", "--reason", "x"],
}
"""Mistakes that need nothing made before."""

_TRAIN = (
    "train --steps 2 --batch_size 8 --log_every 1 --save_every 2 --device cpu --threads 1 "
    "--student.name cifar_resnet --dreamteacher.width 8 --channels_last false"
).split()
_STUDENT = ["--student.settings", "{depths: [1, 1, 1], widths: [8, 8, 8]}"]


def _train(words: str, dataset: str = "data/whole") -> list[str]:
    return [*_TRAIN, *_STUDENT, "--run_dir", "run", "--data.dataset", dataset, *words.split()]


def _again(words: str) -> list[str]:
    plain = "--name whole --root data --fsync false --actors 1 --device cpu --micro_batch 16"
    settings = ["--teacher.settings", "{channels: 16}"]
    return [*_encode(f"{plain} --samples_per_unit 32 --samples 96 {words}"), *settings]


DATA_CASES: dict[str, list[str]] = {
    "ls": ["ls", "data"],
    "inspect": ["inspect", "data/whole"],
    "inspect-tar": ["inspect", "data/tarred"],
    "inspect-root-name": ["inspect", "data/oter"],
    "verify": ["verify", "data/whole"],
    "verify-quick": ["verify", "--quick", "data/tarred"],
    "again": _again(""),
    "again-pins": _again("--micro_batch 8 --samples 128"),
    "quality": [
        *_again("--name damaged --source.kind folder --source.path images/folder"),
        *("--samples", "12"),
    ],
    **{
        f"{verb}-{name}": [verb, f"damaged/{name}"]
        for verb in ("inspect", "verify")
        for name in ("byte", "short", "gone", "newer", "keys", "text", "record", "hole")
    },
    "ls-damaged": ["ls", "damaged"],
    "repair": ["verify", "--repair", "damaged/byte"],
    "verify-repaired": ["verify", "damaged/byte"],
    "train-hole": _train("", "damaged/hole"),
    "train-newer": _train("", "damaged/newer"),
    "train-root-name": _train("", "data/wole"),
    "train-levels": _train("--data.levels [b8,b99]"),
    "train-size": _train("--data.image_size [32,32]"),
    "train-range": _train("--data.pixel_range -1..1"),
    "train-batch": _train("--accumulate 3"),
    "train-crop": _train("--data.crop [6,6]"),
    "train-strides": _train("--student.strides [8]"),
    "train-student": _train("--student.name resnett50"),
    "train-settings": [*_train(""), "--student.settings", "{widths: [4], dpth: 3}"],
    "train-pretrained": _train("--student.pretrained true --run_dir pretrained"),
    "train-frozen": _train("--student.frozen_stages 60 --run_dir frozen"),
    "train-join": _train("--data.join [data/other]"),
    "train-join-same": _train("--data.join [data/tarred]"),
    "train-labels": _train("--dreamteacher.mode label"),
    "train-flip": _train("--data.flip mirror"),
    "train-map": _train("--data.levels [b8,image]"),
    "train-drop-path": _train("--student.drop_path 0.1"),
    "train-cuda": _train("--device cuda"),
    "train-fp16": _train("--precision fp16"),
    "train-works": _train(""),
    "train-other-settings": _train("--seed 5 --optimizer.lr 0.5"),
    "train-resumed": _train("--restart true --steps 4"),
    "evaluate-teacher": [
        *("evaluate", "--student", "run", "--run_dir", "evaluated", "--image.size", "16"),
        *("--teacher.kind", "noise", "--teacher.levels", "[s2]"),
    ],
    "publish-works": ["publish", "--student", "run", "--out", "published"],
    "export-level": ["export", "data/whole", "copies", "--levels", "b99"],
    "export-samples": ["export", "data/whole", "copies", "--samples", "1000"],
    "export-codec": ["export", "data/whole", "copies", "--codec", "b9=int8"],
    "export-raw": ["export", "data/tarred", "copies", "--codec", "raw"],
    "export-hole": ["export", "damaged/hole", "copies"],
    "export-itself": ["export", "data/whole", "data"],
    "drop-unknown": ["drop", "data/whole", "nobody", "--reason", "x"],
    "drop-none": ["drop", "data/whole", "--reason", "x"],
    "drop-file": ["drop", "data/whole", "--from-file", "nowhere", "--reason", "x"],
    "drop": ["drop", "data/other", "digits-00000", "--reason", "a blot"],
    "drop-again": ["drop", "data/other", "digits-00000", "--reason", "a blot"],
    "inspect-dropped": ["inspect", "data/other"],
    "pin": ["pin", "data/other", "--reason", "paper"],
    "gc-pinned": ["gc", "data", "--remove", "other"],
    "gc": ["gc", "data", "--keep-latest", "1"],
    "gc-unknown": ["gc", "data", "--remove", "nobody"],
    "unpin": ["pin", "data/other", "--remove"],
    "unpin-again": ["pin", "data/other", "--remove"],
    "gc-yes": ["gc", "data", "--remove", "other", "--yes"],
    "ls-after": ["ls", "data"],
    "report": ["report", "run"],
}
"""What is said of datasets; in this order, for some change what the next ones find."""
