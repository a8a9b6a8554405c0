"""Crafted files of every kind of checkpoint: name -> (file name, bytes, what its error names)."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

MARK = "ran"
"""The file that a payload would make."""
COMMAND = f"touch {MARK}"
Case = tuple[str, bytes, str]


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(full: str) -> bytes:
    module, _, last = full.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(full: str, *arguments: bytes) -> bytes:
    return name(full) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def state(value: bytes, key: str = "layer.weight") -> bytes:
    return b"\x80\x02}" + text(key) + value + b"s."


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 4) -> bytes:
    told = text("storage") + name(kind) + text(key) + text("cpu") + number(count)
    return b"(" + told + b"tQ"


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0,
    held: bytes | None = None,
) -> bytes:  # fmt: skip
    told = (storage() if held is None else held) + number(offset) + numbers(*size)
    return call("torch._utils._rebuild_tensor_v2", told, numbers(*stride), b"\x89", b"}")


def packed(
    program: bytes, members: Mapping[str, bytes] | None = None, *, how: int = zipfile.ZIP_STORED,
    root: str = "archive/",
) -> bytes:  # fmt: skip
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(f"{root}data.pkl", program)
        for path, raw in ({"data/0": bytes(16)} if members is None else members).items():
            archive.writestr(f"{root}{path}", raw)
    return file.getvalue()


def legacy(program: bytes, *, keys: tuple[str, ...] = ("0",), raw: bytes | None = None) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, system)]
    tail = struct.pack("<q", 4) + bytes(16) if raw is None else raw
    return b"".join(head) + program + pickle.dumps(list(keys), 2) + tail


def nested(raw: bytes) -> bytes:
    return call("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(raw)) + raw)


def bare(count: int = 4, **told: object) -> bytes:
    return legacy(b"\x80\x02" + storage(count=count) + b".", **told)  # type: ignore[arg-type]


def persistent(state_dict: bytes, source: str = "") -> bytes:
    meta = b"}(" + text("type") + text("class") + text("module_src") + text(source)
    meta += text("class_name") + text("Generator") + text("state") + state_dict + b"u"
    return call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def network(weight: bytes) -> bytes:
    """A snapshot whose G_ema has one parameter."""
    inside = b"}(" + text("_parameters") + b"}" + text("weight") + weight + b"s"
    inside += text("_init_kwargs") + b"}u"
    return b"\x80\x03}" + text("G_ema") + persistent(inside) + b"s."


NAMES = (
    "os.system", "posix.system", "nt.system", "builtins.eval", "builtins.exec",
    "builtins.__import__", "builtins.getattr", "builtins.open", "builtins.compile",
    "subprocess.Popen", "subprocess.check_output", "importlib.import_module", "runpy.run_path",
    "torch.load", "torch.hub.load", "torch.jit.load", "torch.ops.load_library", "pickle.loads",
    "shutil.rmtree", "operator.attrgetter", "functools.partial", "types.FunctionType",
    "ctypes.CDLL", "numpy.load", "numpy.testing._private.utils.runstring", "codecs.decode",
    "torch.storage._load_from_bytes.__globals__", "builtins.map", "copyreg._reconstructor",
    "torch._utils._rebuild_from_type_v2", "torch._tensor._rebuild_from_type_v2", "torch.nn.Module",
)  # fmt: skip


def programs() -> dict[str, Case]:
    """Programs that would call something."""
    cases: dict[str, Case] = {}
    for k, full in enumerate(NAMES):
        program = state(call(full, text(COMMAND)))
        made = {"pkl": program, "zip.pt": packed(program), "old.pt": legacy(program)}
        kind = list(made)[k % 3]
        cases[f"{full} in {kind}"] = (f"x.{kind}", made[kind], full.rpartition(".")[0])
    run, told = text("os") + text("system") + b"\x93", text(COMMAND)
    forms = {
        "by stack": run + told + b"\x85R",
        "as an instance": b"(" + told + b"ios\nsystem\n",
        "as an object": b"(" + name("os.system") + told + b"o",
        "as a new object": run + told + b"\x85\x81",
        "as a new object with words": run + told + b"\x85}\x92",
        "by a dotted name": text("collections") + text("abc.sys.modules") + b"\x93",
        "through an allowed module": text("torch._utils") + text("os.system") + b"\x93",
        "built onto a dict": b"}" + run + b"b",
        "in a set": b"\x8f(" + run + b"\x90",
        "after a stop": b"N." + run + told + b"\x85R",
        "as a key": b"}" + run + b"Ns",
    }
    for form, program in forms.items():
        needle = "sys.modules" if "dotted" in form else "os.system"
        needle = "no dict" if "stop" in form else needle
        cases[f"called {form}"] = ("x.pkl", b"\x80\x04" + program + b".", needle)
    cases |= {
        "extension code": ("x.pkl", b"\x80\x02\x82\x01.", "operation 0x82"),
        "buffer out of band": ("x.pkl", b"\x80\x05\x97.", "operation 0x97"),
        "protocol 6": ("x.pkl", b"\x80\x06N.", "protocol 6"),
        "call of a text": ("x.pkl", b"\x80\x02" + text("os.system") + b")R.", "call of a str"),
        "source text that is run": (
            "x.pkl",
            b"\x80\x03}" + text("G_ema")
            + persistent(b"}", f"import os; os.system('{COMMAND}')") + b"s.",
            "_init_kwargs",
        ),
    }  # fmt: skip
    inner = state(call("os.system", text(COMMAND)))
    for kind, raw in {
        "a pickle": inner,
        "a zip": packed(inner),
        "an old file": legacy(inner),
    }.items():
        needle = "" if kind == "a zip" else "os.system"
        cases[f"nested: {kind}"] = ("x.pkl", network(tensor(held=nested(raw))), needle)
    twice = network(tensor(held=nested(legacy(b"\x80\x02" + nested(bare()) + b"."))))
    cases["nested twice"] = ("x.pkl", twice, "torch.storage._load_from_bytes")
    return cases


def allowed_names() -> dict[str, Case]:
    """Calls of names that are allowed, with what they are not for."""
    kind = call("numpy.dtype", text("O"), b"\x89", b"\x88")
    plain = call("numpy.dtype", text("f8"), b"\x89", b"\x88")
    bomb = b"B" + struct.pack("<I", 4) + b"abcd"
    shaped = b"(" + number(1) + numbers(1 << 40) + plain + b"\x89" + bomb + b"t"
    array = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), text("b"))
    parameter = call("torch._utils._rebuild_parameter", text("no tensor"), b"\x88", b"}")
    found = {
        "object scalar": (call("numpy.core.multiarray.scalar", kind, bomb), "'O'"),
        "short scalar": (call("numpy.core.multiarray.scalar", plain, bomb), "numpy number"),
        "huge array": (array + shaped + b"b", "numpy array of shape"),
        "codec": (call("_codecs.encode", text(COMMAND), text("zlib")), "'zlib'"),
        "dict of texts": (call("collections.OrderedDict", text("ab")), "a dict of a str"),
        "set of networks": (call("builtins.set", b"](" + name("torch.Size") + b"e"), "a key that"),
        "no tensor": (parameter, "holds no state dict"),
        "view of a text": (
            call("torch._utils._rebuild_tensor_v2", text("x"), number(0), numbers(4), numbers(1)),
            "layer.weight",
        ),
    }
    return {f"{k} ({n})": ("x.pt", packed(state(v)), n) for k, (v, n) in found.items()}


def memory() -> dict[str, Case]:
    """Short programs that would need much memory, or a deep stack."""
    many, deep = 2_000_000, 100_000
    doubled = b"\x80\x02](q\x00" + b"".join(
        b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(200)
    )
    pair = b"\x80\x02]q\x00" + b"(" + b"N" * 1000 + b"e0"
    copies = name("collections.OrderedDict") + b"h\x01\x85R0"
    listed = b"](" + (b"(" + text("a") + b"Nt") * 2000 + b"eq\x01"
    face = "\U0001f600".encode() * (1 << 20)
    budget = "asks for more memory"
    cases = {
        "doubled lists": (doubled + b"e.", ""),
        "memo of a huge number": (b"\x80\x02Nr\xff\xff\xff\xff.", "no dict"),
        "many dicts": (b"\x80\x02(" + b"}" * many + b"t.", budget),
        "many lists": (b"\x80\x02(" + b"]" * many + b"t.", budget),
        "many marks": (b"\x80\x02" + b"(" * many + b".", budget),
        "many memos": (b"\x80\x02]" + b"\x94" * many + b".", budget),
        "many references": (pair + b"(" + b"h\x00" * 3 * many + b"t.", budget),
        "copied dicts": (b"\x80\x02" + listed + copies * 100_000 + b"N.", budget),
        "copied texts": (
            b"\x80\x02" + text("x" * (1 << 20)) + b"q\x01"
            + (name("_codecs.encode") + b"h\x01\x85R0") * 1000 + b".",
            budget,
        ),
        "text of many bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.", "cut short"),
        "bytes of many bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.", "cut short"),
        "text of wide letters": (
            b"\x80\x02" + (b"X" + struct.pack("<I", len(face)) + face + b"0") * 8 + b"N.", budget,
        ),
        "number of many bytes": (b"\x80\x02\x8b" + struct.pack("<i", 1 << 30), "cut short"),
        "number of many digits": (b"L" + b"9" * 5000 + b"L\n.", "whole number"),
        "negative length": (b"\x80\x02\x8b" + struct.pack("<i", -5) + b".", "cut short"),
        "frame beyond the end": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".", "cut short"),
        "line without an end": (b"c" + b"x" * 100_000, "without an end"),
        "deep lists": (b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".", ""),
        "deep tuples": (b"\x80\x02)" + b"\x85" * deep + b".", ""),
        "deep key": (b"\x80\x02})" + b"\x85" * deep + b"Ns.", "a key that is a tuple"),
        "nothing": (b"", "cut short"),
        "no end": (b"\x80\x02N", "no end"),
        "empty stack": (b"\x80\x02R.", "more than it made"),
        "unknown memo": (b"\x80\x02h\x07.", "nothing was kept"),
    }  # fmt: skip
    found = {k: ("x.pkl", program, needle) for k, (program, needle) in cases.items()}
    nest = b"}" + text("a")
    deep_state = b"\x80\x02" + nest * 5000 + b"N" + b"s" * 5000 + b"."
    found["deep dicts in a zip"] = ("x.pt", packed(deep_state), "nested more than")
    return found


def tensors() -> dict[str, Case]:
    """Views that do not fit their storages, in all three kinds of file."""
    views = {
        "huge over tiny": tensor((1 << 20, 1 << 20), (1 << 20, 1)),
        "beyond any memory": tensor((1 << 60,), (1,)),
        "negative stride": tensor((4,), (-1,), 3),
        "negative offset": tensor((2,), (1,), -2),
        "negative size": tensor((-4,), (1,)),
        "beyond the end": tensor((4,), (1,), 1),
        "overlapping": tensor((2, 3), (1, 1)),
        "repeated without end": tensor((1 << 40,), (0,)),
        "nine dimensions": tensor((1,) * 9, (1,) * 9),
        "fewer strides": tensor((2, 2), (1,)),
    }
    cases: dict[str, Case] = {}
    for k, (what, view) in enumerate(views.items()):
        cases[f"{what}, zip"] = ("x.pt", packed(state(view)), "layer.weight")
        if k % 2:
            cases[f"{what}, old"] = ("x.old.pt", legacy(state(view)), "layer.weight")
        inside = view.replace(storage(), nested(bare()))
        cases[f"{what}, snapshot"] = ("x.pkl", network(inside), "weight")
    many = b"\x80\x02}(" + b"".join(
        text(f"w{k}") + tensor((1 << 18,), (1,), held=storage(count=1 << 18)) for k in range(64)
    )
    views_of_one = packed(many + b"u.", {"data/0": bytes(1 << 20)})
    cases["many views of one storage"] = ("x.pt", views_of_one, "tensor w")
    floats = call("torch._utils._rebuild_tensor_v2", storage(), b"K\x00", b"G" + bytes(8) + b"\x85",
                  numbers(1))  # fmt: skip
    cases["sizes that are no numbers"] = ("x.pt", packed(state(floats)), "layer.weight")
    return cases


def storages() -> dict[str, Case]:
    """Storages that are not what they are said to be."""
    huge = tensor(held=storage(count=1 << 40))
    both = b"(" + storage() + storage("torch.LongStorage") + b"t"
    trick = "../../../../etc/passwd"
    usual = state(tensor())
    old_keys = legacy(usual, keys=("1",))
    return {
        "said to be huge": ("x.pt", packed(state(huge)), "storage 0"),
        "said to be huge, old": ("x.old.pt", legacy(state(huge)), "storage '0'"),
        "said to be huge, snapshot": (
            "x.pkl", network(tensor(held=nested(bare(1 << 40)))), "storage '0'",
        ),
        "negative count": ("x.pt", packed(state(tensor(held=storage(count=-1)))), "storage '0'"),
        "missing": ("x.pt", packed(usual, {}), "storage 0"),
        "shorter": ("x.pt", packed(usual, {"data/0": bytes(8)}), "storage 0"),
        "told twice": ("x.pt", packed(state(both)), "storage '0'"),
        "another key": ("x.old.pt", old_keys, "not those of its tensors"),
        "cut": ("x.old.pt", legacy(usual)[:-4], "storage '0'"),
        "another class": (
            "x.pt", packed(state(tensor(held=storage("os.system")))), "os.system",
        ),
        "key that is a path": (
            "x.pt", packed(state(tensor(held=storage(key=trick))), {f"data/{trick}": bytes(8)}),
            "passwd",
        ),
        "persistent id, snapshot": ("x.pkl", b"\x80\x02" + text("evil") + b"Q.", "'evil'"),
        "persistent id of text": ("x.pkl", b"Pevil\n.", "'evil'"),
        "persistent id, zip": (
            "x.pt", packed(state(b"(" + text("module") + text("os") + b"tQ")), "'module'",
        ),
        "class of a class": (
            "x.pt", packed(state(call("torch.device.__class__", b"N"))), "torch.device.__class__",
        ),
    }  # fmt: skip


def archives() -> dict[str, Case]:
    """Zips that are damaged, packed, or hold what they should not."""
    usual = state(tensor())
    whole = packed(usual)
    flipped = bytearray(whole)
    flipped[whole.index(bytes(16))] ^= 1
    twice = packed(usual, {"data/0": bytes(16), "more/data.pkl": b"N."})
    bomb = packed(usual, {"data/0": bytes(16), "data/1": bytes(64 << 20)}, how=zipfile.ZIP_DEFLATED)
    out = packed(usual, root="../../../tmp/")
    same = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(same, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("archive/data.pkl", usual)
    evil = state(call("os.system", text(COMMAND)))
    return {
        "truncated": ("x.pt", whole[:-60], "damaged or truncated"),
        "cut at the head": ("x.pt", whole[:10], "damaged or truncated"),
        "bomb": ("x.pt", bomb, "unpacks to more than its own size"),
        "two descriptions": ("x.pt", twice, "2 descriptions"),
        "one name twice": ("x.pt", same.getvalue(), "two members of one name"),
        "script": ("x.pt", packed(usual, {"constants.pkl": b"N."}), "TorchScript"),
        "flipped bit": ("x.pt", bytes(flipped), "CRC"),
        "path that leads out": ("x.pt", out.replace(usual, evil[: len(usual)]), ""),
        "path that leads out, evil": ("x.pt", packed(evil, root="../../../tmp/"), "os.system"),
        "other order": ("x.pt", packed(usual, {"byteorder": b"big"}), "order"),
    }


def arrays() -> dict[str, Case]:
    """Plain arrays that are none."""

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (COMMAND,)

    def saved(*, packed_too: bool = True, **values: np.ndarray) -> bytes:
        file = io.BytesIO()
        if packed_too:
            np.savez(file, **values)  # type: ignore[arg-type]
        else:
            np.save(file, next(iter(values.values())), allow_pickle=True)
        return file.getvalue()

    def header(told: str) -> bytes:
        raw = told.encode().ljust(118) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw

    trap = np.array([Trap()], dtype=object)
    big = "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64)}"
    run = f"{{'descr': __import__('os').system('{COMMAND}'), 'shape': (1,)}}"

    def zipped(raw: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as archive:
            archive.writestr("instance_features.npy", raw)
        return file.getvalue()

    zeros = io.BytesIO()
    np.save(zeros, np.zeros((1 << 20, 16), np.float32))
    head = {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}
    over = json.dumps(head).encode()
    return {
        "objects in npz": ("x.npz", saved(instance_features=trap), "object"),
        "objects in npy": ("x.npy", saved(packed_too=False, a=trap), "bject"),
        "huge npz": ("x.npz", zipped(header(big)), "instance_features"),
        "huge npy": ("x.npy", header(big), "x.npy"),
        "code in a header": ("x.npz", zipped(header(run)), "x.npz"),
        "code in a header of npy": ("x.npy", header(run), "x.npy"),
        "truncated npz": ("x.npz", zipped(zeros.getvalue())[:-30], "x.npz"),
        "no zip": ("x.npz", pickle.dumps(Trap()), "x.npz"),
        "pickle as npy": ("x.npy", pickle.dumps(Trap()), "x.npy"),
        "safetensors, huge header": (
            "x.safetensors", struct.pack("<Q", 1 << 62) + b"{}", "x.safetensors",
        ),
        "safetensors, huge shape": (
            "x.safetensors", struct.pack("<Q", len(over)) + over + bytes(4), "x.safetensors",
        ),
    }  # fmt: skip


CASES: dict[str, Case] = {
    f"{group.__name__}: {what}": case
    for group in (programs, allowed_names, memory, tensors, storages, archives, arrays)
    for what, case in group().items()
}
