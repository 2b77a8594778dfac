"""The model inside Triton's Python backend: one process, one pipeline, one request at a time.

Imported by the ``model.py`` that `repository` writes, and only there: ``triton_python_backend_utils`` exists in the
backend's processes alone. Triton calls everything here from one thread, which a `Device` asks for.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.serve.triton.environment import check_numpy, show_one_gpu
from flowblending.runtime.serve.triton.request import Arrays
from flowblending.runtime.serve.triton.signature import BUNDLE_FOLDER, DEVICE
from flowblending.runtime.serve.triton.worker import Cancelled, answer
from flowblending.runtime.warm_up import warm_up
from flowblending.system.scratch import sweep_scratch


class VideoModel:
    """What Triton's Python backend asks of a model."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Open the engines that stay open: a model that cannot work never becomes ready, and no request waits for one.

        Args:
            arguments: of the backend: the model's folder and version, its configuration and its GPU.
        """
        parameters = {
            name: value["string_value"] for name, value in json.loads(arguments["model_config"])["parameters"].items()
        }
        try:
            check_numpy(Path("/proc/self/exe"), np.__version__)
            if arguments["model_instance_kind"] == "GPU":
                show_one_gpu(int(arguments["model_instance_device_id"]), os.environ)
            sweep_scratch()
            folder = Path(arguments["model_repository"], arguments["model_version"], BUNDLE_FOLDER)
            bundle = open_bundle(folder)
            bundle.verify()
            self._pipeline = Pipeline(
                bundle=bundle,
                device=open_device(parameters[DEVICE], bundle.manifest),
                machine=MachineSettings.of(parameters),
            )
            warm_up(self._pipeline)
        except FlowBlendingError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Serve requests one after the other; a failed one gets its error, and the next is served."""
        for request in requests:
            sender = request.get_response_sender()
            error = self._serve(request, sender)
            if error is not None:
                sender.send(pb_utils.InferenceResponse(error=error), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _serve(
        self, request: pb_utils.InferenceRequest, sender: pb_utils.InferenceResponseSender
    ) -> pb_utils.TritonError | None:
        """Answer a request, and return what went wrong."""

        def respond(outputs: Arrays, *, last: bool = False) -> None:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in outputs.items()]), flags)

        try:
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            answer(self._pipeline, arrays, respond, sender.is_cancelled, json.loads(request.parameters()))
        except Cancelled:
            return pb_utils.TritonError("The request was cancelled.", pb_utils.TritonError.CANCELLED)
        except UsageError as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except FlowBlendingError as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
        except Exception as error:
            # One request must not take the model down for the others.
            pb_utils.Logger.log_error(traceback.format_exc())
            message = f"The model failed with {type(error).__name__} ({error}); the server's log has the details."
            return pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
        return None

    def finalize(self) -> None:
        """Close the engines."""
        self._pipeline.close()
