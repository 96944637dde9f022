from __future__ import annotations

import numpy as np
import pytest
import yaml

from serving.auth import make_key
from tests.serving.asgi import http
from tests.serving.paths import MSGPACK, SayingEngine, ask, one, path_server, picture, post, query
from tests.serving.test_preference_refusals import bomb

WRONG = {
    "no queries": ({"queries": []}, "invalid_request", "queries"),
    "queries of another kind": ({"queries": "a"}, "invalid_request", "queries"),
    "too many queries": (ask(*[query()] * 9), "too_large", "9, limit 8"),
    "a query of another kind": (ask("a"), "invalid_request", "queries[0]"),
    "an unknown entry": (ask(query(prompt="x")), "invalid_request", "prompt"),
    "an unknown entry above": ({**ask(), "image": picture()}, "invalid_request", "image"),
    "an unknown option": (ask(temperature=1), "invalid_request", "temperature"),
    "options of another kind": ({"queries": [query()], "options": [1]}, "invalid_request", "options"),
    "no instruction": (ask({"image": picture()}), "invalid_request", "queries[0].instruction"),
    "an empty instruction": (ask(query(instruction=" ")), "invalid_request", "queries[0].instruction"),
    "a long instruction": (ask(query(instruction="x" * 513)), "too_large", "513 characters, limit 512"),
    "no image": (ask({"instruction": "go"}), "invalid_request", "queries[0].image"),
    "floats": (ask(query(picture().astype(np.float32))), "invalid_image", "queries[0].image"),
    "grey": (ask(query(picture()[..., 0])), "invalid_image", "queries[0].image"),
    "no pixels": (ask(query(picture()[:0])), "invalid_image", "queries[0].image"),
    "a damaged picture": (ask(query(), query(b"\x89PNG\r\n\x1a\nno")), "invalid_image", "queries[1].image"),
    "a picture of another kind": (ask(query(b"GIF89a")), "invalid_image", "neither JPEG nor PNG"),
    "a bomb": (ask(query(bomb())), "too_large", "queries[0].image"),
    "a line of pixels": (ask(query(picture(1, 201))), "invalid_image", "200 times"),
    "an address": (ask(query("http://127.0.0.1/a.png")), "invalid_image", "queries[0].image"),
    "a file": (ask(query("/etc/passwd")), "invalid_image", "queries[0].image"),
    "another view": (ask(view="mirror"), "invalid_request", "none, center_crop, pad, stretch"),
    "a view of another kind": (ask(view=3), "invalid_request", "options.view"),
    "another style": (ask(draw="neon"), "invalid_request", "none, demo, policy"),
    "another form": (ask(draw="demo", form="film"), "invalid_request", "overlay, concat"),
    "a canvas for an overlay": (ask(draw="demo", canvas=[8, 8]), "invalid_request", "'concat'"),
    "a canvas of another kind": (ask(draw="demo", form="concat", canvas=[8, 0]), "invalid_request", "options.canvas"),
    "a vast canvas": (ask(draw="demo", form="concat", canvas=[9999, 9999]), "too_large", "options.canvas"),
    "no points": (ask(max_points=0), "invalid_request", "from 1 to 8"),
    "too many points": (ask(max_points=9), "invalid_request", "from 1 to 8"),
    "a flag that is none": (ask(structured="yes"), "invalid_request", "options.structured"),
    "a gripper that is none": (ask(initial_open=2), "invalid_request", "options.initial_open"),
    "a deadline that is none": ({**ask(), "deadline_ms": "soon"}, "invalid_request", "deadline_ms"),
    "a deadline that has passed": ({**ask(), "deadline_ms": -1.0}, "deadline_exceeded", "deadline_ms"),
    "another model": ({**ask(), "model": "other"}, "not_found", "'mine'"),
    "another route's type": ({**ask(), "type": "open"}, "invalid_request", "type"),
    "bytes that are no message": (b"\xff\xff", "malformed", ""),
    "a message that is no map": (b"\x93\x01\x02\x03", "malformed", "must be a map"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_request_is_refused_by_field_and_limit(name) -> None:
    engine = SayingEngine()
    server = path_server(engine)
    message, code, text = WRONG[name]
    reply = await post(server, message)
    assert reply["code"] == code, reply
    assert text in reply["message"]
    if name != "a damaged picture":  # its neighbour may have been asked about already
        assert engine.asked == [], "nobody was asked"
    assert (await one(server, ask()))["answered"] == 2


async def test_only_its_own_routes_exist() -> None:
    server = path_server()
    for method in ("GET", "POST"):
        for path in ("/label", "/score", "/adapters/load", "/load_lora_adapter", "/tokenize", "/docs", "/path/other"):
            assert (await http(server.app, method, path))[0] == 404


async def test_a_key_is_asked_for_where_there_are_keys(tmp_path) -> None:
    keys = {role: make_key(f"{role}-1", role) for role in ("job", "admin")}
    keys["robot"] = make_key("robot-1", "robot", policy="mine")
    records = [key.record.model_dump(mode="json", exclude_none=True) for key in keys.values()]
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": records}), "utf-8")
    server = path_server(auth={"keys_file": str(tmp_path / "keys.yaml")})
    found = {}
    for role, key in {**keys, "nobody": None}.items():
        bearer = [] if key is None else [("Authorization", f"Bearer {key.secret}")]
        reply = await post(server, ask(), headers=[*MSGPACK, *bearer])
        metrics, _, _ = await http(server.app, "GET", "/metrics", headers=bearer)
        chat, _, _ = await http(server.app, "POST", "/chat/completions", b"{}", headers=bearer)
        found[role] = (reply.get("code", "ok"), metrics, chat)
    assert found == {
        "job": ("ok", 403, 400),
        "admin": ("ok", 200, 400),
        "robot": ("forbidden", 403, 403),
        "nobody": ("unauthenticated", 401, 401),
    }
