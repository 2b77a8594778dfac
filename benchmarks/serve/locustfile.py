"""Users of fb-serve for the load generator locust: each asks for a video, looks until it is there, and takes it.

    pip install locust
    locust -f benchmarks/serve/locustfile.py --headless --users 8 --run-time 60s --host http://127.0.0.1:8000

FB_STEPS (4 unless told) says how many steps a video has, and FB_KEY is the API key, if there is one.
"""

from __future__ import annotations

import os
import time

from locust import HttpUser, between, task


class Viewer(HttpUser):  # type: ignore[misc] # locust is installed by those who use it alone
    """One user."""

    wait_time = between(0, 1)

    def on_start(self) -> None:
        """Have the key with every request."""
        if key := os.environ.get("FB_KEY"):
            self.client.headers["authorization"] = f"Bearer {key}"

    @task  # type: ignore[untyped-decorator]
    def video(self) -> None:
        """From the prompt to the file."""
        fields = {"prompt": "a red circle moves right", "steps": int(os.environ.get("FB_STEPS", "4"))}
        with self.client.post("/v1/videos", json=fields, catch_response=True) as answer:
            if answer.status_code == 429:  # the queue is full, as it may be
                answer.success()
                time.sleep(float(answer.headers["retry-after"]))
                return
        id = answer.json()["id"]
        while True:
            video = self.client.get(f"/v1/videos/{id}", name="/v1/videos/ID").json()
            if video["status"] in ("completed", "failed"):
                break
            time.sleep(0.1)
        self.client.get(f"/v1/videos/{id}/content", name="/v1/videos/ID/content")
