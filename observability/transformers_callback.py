"""A `TrainingMonitor` in the Trainer of Hugging Face's transformers: one callback.

trainer = Trainer(model, args, callbacks=[transformers_callback(TrainingMonitor("delay", run="1"))], …)
"""

from __future__ import annotations

import importlib
from typing import Any

from observability.push import push
from observability.training import TrainingMonitor


def transformers_callback(monitor: TrainingMonitor, *, push_url: str | None = None, job: str = "train") -> Any:
    """A `TrainerCallback`. ImportError without transformers.

    Forward and backward are told apart by hooks of the model, since the Trainer calls none between them. Losses and
    gradient norms are those that the Trainer logs (`logging_steps`), which reads them from the device then; tokens are
    counted with `include_num_input_tokens_seen`. With `push_url` a short job's metrics are pushed at its end.
    """
    try:
        base: Any = importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise ImportError(f"transformers cannot be imported ({error}): pip install 'transformers[torch]'") from error

    class Monitoring(base):  # type: ignore[misc]
        """Marks the phases as the Trainer calls its hooks; see `transformers_callback`."""

        def __init__(self) -> None:
            self._hooks: list[Any] = []
            self._logged: dict[str, Any] = {}
            self._has_forward = False
            self._tokens = 0
            self._ending: tuple[int, int] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            monitor.resumed(state.global_step)
            if model is not None:
                self._hooks = [
                    model.register_forward_pre_hook(self._before_forward),
                    model.register_forward_hook(self._after_forward),
                ]
            monitor.start()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._end()
            monitor.mark("data_wait")
            self._has_forward = False

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            monitor.mark("backward")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            monitor.mark("optimizer")
            rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
            seen = int(state.num_input_tokens_seen or 0)
            tokens, self._tokens = max(0, seen - self._tokens), seen
            self._ending = rows, tokens
            # What is logged of this step is told right after it.
            if not getattr(control, "should_log", False):
                self._end()

        def _end(self) -> None:
            if self._ending is None:
                return
            (rows, tokens), self._ending = self._ending, None
            monitor.end(
                rows,
                loss=self._logged.get("loss"),
                gradient_norm=self._logged.get("grad_norm"),
                learning_rate=self._logged.get("learning_rate"),
                tokens=tokens,
            )
            monitor.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self._logged.update(logs or {})
            self._end()

        def on_evaluate(self, *_: Any, metrics: Any = None, **__: Any) -> None:
            monitor.mark("evaluation")
            scores = {name: one for name, one in (metrics or {}).items() if isinstance(one, int | float)}
            monitor.evaluated(**{name: float(one) for name, one in scores.items() if name != "epoch"})

        def on_save(self, *_: Any, **__: Any) -> None:
            monitor.mark("checkpoint")
            monitor.checkpointed("ok")

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self._end()
            for hook in self._hooks:
                hook.remove()
            monitor.finished("completed")
            monitor.drain()
            if push_url is not None:
                push(push_url, job, monitor.metrics, grouping={"instance": monitor.model})

        def _before_forward(self, module: Any, _: Any) -> None:
            if module.training:
                # Of accumulated batches, every forward pass but the first comes after a backward pass.
                monitor.mark("backward" if self._has_forward else "host_to_device")

        def _after_forward(self, module: Any, *_: Any) -> None:
            if module.training:
                monitor.mark("forward")
                self._has_forward = True

    return Monitoring()
