"""The wire protocol and typed clients: slim by rule (numpy, msgpack, websockets and pillow; no torch, no ray)."""
