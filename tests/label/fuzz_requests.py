"""Malformed requests of every kind that a client or an attacker may send, made from a seed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from urllib.parse import quote

from tests.label.fuzz_client import Ask
from tests.label.fuzz_files import broken_files

JSON = {"content-type": "application/json"}
_ROUTES = (
    "/info/", "/datastore/", "/datastore/image", "/datastore/image/info", "/datastore/label", "/datastore/label/info",
    "/datastore/dataset", "/datastore/updatelabelinfo", "/infer/boltzformer", "/infer/wsi/boltzformer",
    "/infer/wsi_v2/boltzformer", "/batch/infer", "/batch/infer/boltzformer", "/train/", "/train/boltzformer",
    "/scoring/", "/scoring/uncertainty", "/activelearning/random", "/session/", "/session/0123456789", "/logs/",
    "/logs/gpu", "/model/boltzformer", "/model/info/boltzformer", "/ohif/", "/proxy/dicom/wado/studies", "/static/x",
    "/reload", "/docs", "/openapi.json", "/", "/boltzformer", "/boltzformer/", "/boltzformer/main.js",
    "/boltzformer/api/config", "/boltzformer/api/complete?q=liver",
    "/boltzformer/api/segment", "/boltzformer/api/images/scan_0/scan.nii.gz",
    "/boltzformer/api/results/abc/labels.nii.gz",
)  # fmt: skip
# Where an id of an image, label or session goes; none of these may follow a hostile one.
_ID_ROUTES: tuple[tuple[str, str], ...] = (
    ("GET", "/datastore/image?image={}"), ("HEAD", "/datastore/image?image={}"),
    ("GET", "/datastore/image/info?image={}"), ("PUT", "/datastore/image/info?image={}"),
    ("DELETE", "/datastore/image?id={}"), ("DELETE", "/datastore/?id={}"),
    ("GET", "/datastore/label?label={}&tag=final"), ("HEAD", "/datastore/label?image={}&tag=final"),
    ("GET", "/datastore/label/info?label={}&tag=final"), ("PUT", "/datastore/label/info?label={}&tag=final"),
    ("PUT", "/datastore/updatelabelinfo?label={}&tag=final"), ("DELETE", "/datastore/label?id={}&tag=final"),
    ("GET", "/datastore/label?label=scan_1&tag={}"), ("DELETE", "/datastore/label?id=scan_1&tag={}"),
    ("POST", "/infer/boltzformer?image={}"), ("POST", "/infer/boltzformer?session_id={}"),
    ("POST", "/infer/{}?image=scan_0"), ("POST", "/train/{}"), ("POST", "/scoring/{}"), ("POST", "/activelearning/{}"),
    ("POST", "/batch/infer/{}"), ("GET", "/session/{}"), ("DELETE", "/session/{}"), ("GET", "/session/{}?image=true"),
    ("GET", "/model/{}"), ("GET", "/model/info/{}"), ("DELETE", "/model/{}"), ("GET", "/proxy/dicom/{}"),
    ("GET", "/static/{}"), ("GET", "/boltzformer/{}"), ("GET", "/boltzformer/vendor/{}"),
    ("GET", "/boltzformer/api/images/{}/scan.nii.gz"), ("GET", "/boltzformer/api/results/{}/labels.nii.gz"),
    ("GET", "/boltzformer/api/results/x/{}"), ("GET", "/boltzformer/api/{}"),
)  # fmt: skip
_TEXTS = (
    "", " ", "\0", "a\0b", "\n", "%", "%s%n", "${x}", "{{7*7}}", "' OR 1=1 --", "<script>", "🫀" * 50, "ﷺ" * 2000,
    "\u202eabc", "e\u0301" * 300, "A" * 30_000, "-1", "NaN", "null", "true", "undefined", "../" * 40, "C:\\x", "CON",
)  # fmt: skip
_WRONG = (None, True, -1, 0, 1e308, -0.0, 2**70, "", "x", [], [[]], {}, {"a": []}, [None], ["\ud800"], "\udfff")
_WRONG_PARAMS: dict[str, Sequence[object]] = {
    "prompts": (1, True, [1], [None], [["liver"]], {"a": 1}, [" "], "; ; x" * 300, ["a", "A"], ["x" * 600],
                [f"p{n}" for n in range(300)], ["\ud800"], ["liver", ""]),
    "threshold": (0, 1, -1, 2, "x", [0.5], {}, True, "nan", "inf", 1e999),
    "seed": (-1, 1.5, "x", 2**31, 2**80, [1], True),
    "uncertainty": (1, 21, -3, 2.5, "many", [2], True, 10**9),
    "presence": (1, "perhaps", [True], {}),
    "planes": ("diagonal", ["axial", "axial"], [1], {"axial": 1}, 5, "axial sagittal up"),
    "window": ({"a": 1}, [1], [1, 2, 3], ["a", "b"], "no such window", 7, [0, -5], [0, 0], [1e999, 1]),
    "arbitration": ("x", 1, "__class__"),
    "modality": ("PET", 1, ["CT"]),
    "point": (1, True, [1, 2], [1, 2, 3, 4], ["a", 1, 2], {"x": 1}, "here", [1e999, 0, 0], [1e300, 0, 0], [[1, 2, 3]]),
    "keep_lesions": ("some", 1, ["all"], "at_point"),
    "look_closer": (1, "perhaps", [True], True),
    "closer_point": (1, [1, 2], ["a", 1, 2], {"x": 1}, "here", [1e999, 0, 0], [0, 0, 0]),
    "result_extension": (".exe", "/../../x.nii.gz", 1, ".nii.gz\0"),
    "result_dtype": ("float64", "object", 8),
    "label_tag": ("../x", "/etc", "a b", [1], "..", "x" * 100),
    "image": ("/etc/passwd",), "model": ("other", 1), "session": ({"image": "/etc/passwd"},),
    "path": ("/etc/passwd",), "result_write_to_file": (True,), "__proto__": ({},), "promts": ("liver",),
}  # fmt: skip


def hostile_ids(secrets: Sequence[str]) -> list[str]:
    """Ids that lead elsewhere, as they may stand in an address.

    Args:
        secrets: absolute paths of files that must not be read.
    """
    plain = [
        "linked",
        "../linked",
        "..",
        ".",
        "~",
        "~/x",
        "nope",
        "scan_0/../../x",
        "labels",
        "scan_0\0",
        "file:///etc",
    ]
    for secret in [*secrets, "/etc/passwd", "/proc/self/environ"]:
        name = secret.rsplit("/", 1)[-1]
        stem = name.removesuffix(".nii.gz")
        plain += [secret, "/" + secret, secret.removesuffix(".nii.gz"), secret + "\0.nii.gz", f"file://{secret}"]
        plain += [up + each for up in ("../", "../../", "labels/../../", "./../") for each in (name, stem)]
        plain += ["..\\" + name, "..\\..\\" + stem, "../" * 12 + secret.lstrip("/"), f"....//{name}", f"..;/{name}"]
    ids = []
    for each in plain:
        once = quote(each, safe="")
        ids += [quote(each), once, quote(once, safe=""), once.replace("..", "%2e%2e"), once.replace(".", "%252e")]
        ids += [once.replace("%2F", "%c0%af"), once.replace("%2F", "%5c")]
    return list(dict.fromkeys(ids))


def _form(random: Random, fields: Sequence[tuple[str, bytes, str | None]]) -> tuple[dict[str, str], bytes]:
    """A multipart body: name, content, file name."""
    edge = f"edge{random.randrange(10**9)}"
    body = b""
    for name, content, file in fields:
        more = "" if file is None else f'; filename="{file}"'
        body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
    return {"content-type": f"multipart/form-data; boundary={edge}"}, body + f"--{edge}--\r\n".encode()


def _ids(random: Random, secrets: Sequence[str]) -> Iterator[Ask]:
    ids = hostile_ids(secrets)
    while True:
        method, route = random.choice(_ID_ROUTES)
        each = random.choice(ids)
        yield Ask(method=method, target=route.format(each))


def _ids_in_json(random: Random, secrets: Sequence[str]) -> Iterator[Ask]:
    ids = [*secrets, "linked", "../linked", "/etc/passwd", "scan_0\0", "..", "\ud800", *_TEXTS]
    while True:
        image = random.choice([*ids, *_WRONG])
        body = json.dumps({"image": image, "prompts": ["liver"]}).encode()
        yield Ask(method="POST", target="/boltzformer/api/segment", headers=JSON, body=body)


def _params(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    while True:
        key = random.choice(list(_WRONG_PARAMS))
        params = {"threshold": 0.5, "prompts": ["liver"], key: random.choice(_WRONG_PARAMS[key])}
        text = json.dumps(params)
        form, body = _form(random, [("params", text.encode(), None)])
        kind = random.randrange(4)
        if kind == 0:
            yield Ask(method="POST", target="/infer/boltzformer?image=scan_0&output=json", headers=form, body=body)
        elif kind == 1 and key not in ("image", "label_tag"):
            own = {**params, "image": "scan_0"}
            body = json.dumps(own).encode()
            yield Ask(method="POST", target="/boltzformer/api/segment", headers=JSON, body=body)
        elif kind == 2:
            target = "/batch/infer/boltzformer?images=unlabeled&run_sync=true"
            yield Ask(method="POST", target=target, headers=JSON, body=text.encode())
        elif key in ("prompts", "uncertainty"):
            target = "/scoring/uncertainty?run_sync=true"
            yield Ask(method="POST", target=target, headers=JSON, body=json.dumps({key: params[key]}).encode())


def _numbers(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    keys = ("epochs", "learning_rate", "gpus", "device", "client_id", "max_workers", "max_batch_size", "multi_gpu", "x")
    while True:
        body = {random.choice(keys): random.choice(([], {}, [1], {"a": "b"}, [[0.1]]))}
        target = random.choice(("/train/boltzformer", "/batch/infer/boltzformer", "/scoring/uncertainty"))
        yield Ask(method="POST", target=f"{target}?run_sync=true", headers=JSON, body=json.dumps(body).encode())
        query = random.choice(("run_sync=maybe", "enqueue=2", "images=/etc", "output=exe", "output=", "limit_cases=x",
                               "all=7", "check_if_running=x", "lines=x", "lines=-5", "lines=99999999999", "refresh=-1",
                               "expiry=-1", "expiry=1e9", "uncompress=x", "update_ts=[]"))  # fmt: skip
        method, route = random.choice(("GET", "POST", "PUT")), random.choice(_ROUTES[:25])
        if "train" not in route and "batch" not in route and "scoring" not in route:
            yield Ask(method=method, target=f"{route}?{query}", refused=False)


def _json(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    routes = ("/boltzformer/api/segment", "/train/boltzformer", "/batch/infer/boltzformer", "/scoring/uncertainty",
              "/activelearning/uncertainty", "/train/", "/scoring/")  # fmt: skip
    broken = [b"{", b"[1", b"nul", b"{'a': 1}", b'{"a": NaN}', b'{"epochs": Infinity}', b'{"prompts": ["\\ud800"]}',
              b'{"seed": 1e999}', b'{"prompts": -1e999}', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\x00",
              b"\xef\xbb\xbf{", b"\0", b'{"a": ' + b"9" * 6000 + b"}", b'"text"', b"[]", b"17", b'{"a": \xff}',
              b'{"\\ud800": 1}', b'{"prompts": "' + b"x" * 900_000 + b'"}', b" " * 2_000_000]  # fmt: skip
    kinds = ("application/json", "text/plain", "application/xml", "application/json; charset=utf-7", "",
             "multipart/form-data", "application/x-www-form-urlencoded", "multipart/form-data; boundary=",
             "application/json\0")  # fmt: skip
    while True:
        body = random.choice(broken)
        if random.random() < 0.3:
            kind = {"content-type": random.choice(kinds)}
            yield Ask(method="POST", target="/boltzformer/api/segment", headers=kind, body=body)
        else:
            yield Ask(method="POST", target=random.choice(routes), headers=JSON, body=body)
        text = random.choice([*broken, *(json.dumps({"strategy": each}).encode() for each in (1, [], "x", {"a": 1}))])
        form, body = _form(random, [("info", text, None), ("params", text, None)])
        target = random.choice(("/datastore/image/info?image=scan_0", "/datastore/label/info?label=scan_0&tag=none"))
        yield Ask(method="PUT", target=target, headers=form, body=body)
        yield Ask(method="POST", target="/infer/boltzformer?image=scan_0", headers=form, body=body)


def _uploads(random: Random, secrets: Sequence[str]) -> Iterator[Ask]:
    files = broken_files(random, secrets)
    targets = (("POST", "/infer/boltzformer?output=json", "file"), ("PUT", "/datastore/image?image=fuzzed", "file"),
               ("PUT", "/datastore/image", "file"), ("PUT", "/datastore/label?image=scan_0&tag=final", "label"),
               ("PUT", "/datastore/label?image=linked&tag=final", "label"))  # fmt: skip
    while True:
        ending, content = random.choice(files)
        method, target, name = random.choice(targets)
        form, body = _form(random, [(name, content, f"file{ending}")])
        yield Ask(method=method, target=target, headers=form, body=body)
        odd = random.choice(
            ("../../evil.nii.gz", "/etc/x.nii.gz", "a.sh", "x.py", "", "a\\..\\b.nii.gz", ".nii.gz", "a" * 5000)
        )
        form, body = _form(random, [(name, content, odd)])
        yield Ask(method=method, target=target, headers=form, body=body)
        if ending in (".nrrd", ".mha"):
            form, body = _form(random, [("files", content, f"a{ending}")] * random.randrange(1, 4))
            yield Ask(method="PUT", target="/session/", headers=form, body=body, refused=False)


def _multipart(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    form, whole = _form(random, [("params", b"{}", None), ("file", gzip.compress(b"x" * 999), "a.nii.gz")])
    kind = "multipart/form-data"
    kinds = [kind, f"{kind}; boundary=", f"{kind}; boundary=é", f"{kind}; boundary={'b' * 500}", "multipart/mixed"]
    kinds += [form["content-type"] + more for more in ("", "; charset=idna", "; charset=undefined", "; charset=utf-7")]
    targets = (("POST", "/infer/boltzformer"), ("PUT", "/datastore/image?image=fuzzed"),
               ("PUT", "/datastore/label?image=scan_0"), ("PUT", "/session/?expiry=-1"))  # fmt: skip
    while True:
        broken = bytearray(whole[: random.randrange(len(whole))])
        for _place in range(random.randrange(1, 6)):
            if broken:
                broken[random.randrange(len(broken))] = random.randrange(256)
        method, target = random.choice(targets)
        yield Ask(method=method, target=target, headers={"content-type": random.choice(kinds)}, body=bytes(broken))


def _methods(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    words = ("PATCH", "TRACE", "CONNECT", "PROPFIND", "OPTIONS", "get", "FOO", "QUERY", "HEAD")
    while True:
        yield Ask(method=random.choice(words), target=random.choice(_ROUTES), refused=False)


def _headers(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    ranges = ("bytes=999999999-", "bytes=-0", "bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=" + "0-1," * 200, "bytes",
              "bytes=0-99999999999999999999", "bytes=-99999999999999", "bytes=,", "bytes=0-0,-1")  # fmt: skip
    odd = [("content-length", "-1"), ("content-length", "9" * 5000), ("content-length", "1e3"), ("content-length", "²"),
           ("host", "evil.example"), ("host", "a b"), ("host", "[::"), ("host", "@:@"), ("host", "x" * 9000),
           ("host", ""), ("origin", "https://evil.example"), ("origin", "null"), ("origin", "http://[::"),
           ("origin", "testserver"),
           ("authorization", "Bearer x"), ("authorization", "\xff"), ("cookie", "a=" + "b" * 60_000), ("accept", "\0"),
           ("if-none-match", '"' * 999), ("x-forwarded-for", "' --"), ("x-forwarded-host", "evil"),
           ("accept-encoding", "🫀"), ("transfer-encoding", "chunked, chunked"), ("expect", "100-continue"),
           ("upgrade", "websocket")]  # fmt: skip
    files = ("/boltzformer/api/images/scan_0/scan.nii.gz", "/datastore/image?image=scan_0", "/boltzformer/main.js")
    while True:
        yield Ask(target=random.choice(files), headers={"range": random.choice(ranges)}, refused=False)
        name, value = random.choice(odd)
        yield Ask(
            target=random.choice(_ROUTES), headers={name: value}, refused=name == "host" and value == "evil.example"
        )
        preflight = {"origin": "https://evil.example", "access-control-request-method": random.choice(("GET", "EVIL"))}
        yield Ask(method="OPTIONS", target=random.choice(_ROUTES), headers=preflight)


def _paths(random: Random, _: Sequence[str]) -> Iterator[Ask]:
    while True:
        junk = "".join(chr(random.choice((random.randrange(1, 128), random.randrange(128, 0x2FFF)))) for _ in range(30))
        text = random.choice([*_TEXTS[2:], junk])
        start = random.choice(
            ("/", "/infer/", "/datastore/", "/boltzformer/", "/boltzformer/api/", "/static/", "/model/", "/ohif/")
        )
        quoted = quote(text[:3000], safe="" if random.random() < 0.5 else "/")
        yield Ask(target=f"{start}{quoted}", refused=False)
        for name in ("image", "label", "tag", "id", "session_id", "check_sum"):
            target = f"{random.choice(_ROUTES[:6])}?{name}={quoted}"
            yield Ask(method=random.choice(("GET", "HEAD")), target=target, refused=False)
        sums = ("md5:00", "sha256:zz", "SHA1:00", ":", "SHA512:" + "0" * 128, "sha256:ab")
        yield Ask(method="HEAD", target=f"/datastore/image?image=scan_0&check_sum={random.choice(sums)}")


_Family = Callable[[Random, Sequence[str]], Iterator[Ask]]
FAMILIES: dict[str, _Family] = {
    "ids": _ids, "ids in JSON": _ids_in_json, "parameters": _params, "numbers": _numbers, "JSON": _json,
    "uploads": _uploads, "multipart": _multipart, "methods": _methods, "headers": _headers, "paths": _paths,
}  # fmt: skip


def malformed(family: str, seed: int, count: int, secrets: Sequence[str]) -> list[Ask]:
    """``count`` requests of a family; the same for the same seed."""
    made = FAMILIES[family](Random(f"{family} {seed}"), secrets)
    return list(islice(made, count))
