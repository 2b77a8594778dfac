"""A video from a Triton server over HTTP, with a line of progress; Python's standard library is enough.

Usage: 06_http.py http://localhost:8000 MODEL PROMPT VIDEO.mp4
"""

import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

server, model, prompt, out = sys.argv[1:]
fields = {"prompt": prompt, "seed": 7, "progress": True}
try:
    with urllib.request.urlopen(f"{server}/v2/models/{model}/generate_stream", json.dumps(fields).encode()) as answer:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                sys.exit(f"\n{event['error']}")
            if "step" in event:
                print(f"\r{event['step']} of {event['steps']} steps", end="", flush=True)
            if "video" in event:
                Path(out).write_bytes(base64.b64decode(event["video"]))
                print(f"\n{out}: {json.loads(event['report'])['schedule']}")
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
