"""A `TrainingMonitor` in Lightning: one callback, and every step, phase and loss is recorded without a synchronisation.

trainer = Trainer(callbacks=[lightning_callback(TrainingMonitor("delay", run="1"))])
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from observability.push import push
from observability.training import TrainingMonitor


def lightning_callback(
    monitor: TrainingMonitor, *, push_url: str | None = None, job: str = "train", gradient_norm: bool = False
) -> Any:
    """A `Callback` for `pytorch_lightning` or `lightning`, whichever there is. ImportError without either.

    A step is one of the optimizer's, with all batches that were accumulated for it. Lightning tells nobody the norm by
    which it clips: `gradient_norm` takes one more before that, on the device. Moving a batch to the device counts as
    `data_wait`, since Lightning does it before it tells of the batch; what is evaluated and saved between two steps
    counts to the later one. The run's outcome is counted at its end; with `push_url`, a gateway's, a short job's
    metrics are pushed then.
    """
    base: Any = _callback_class()

    class Monitoring(base):  # type: ignore[misc]
        """Marks the phases as Lightning calls its hooks; see `lightning_callback`."""

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            save = trainer.save_checkpoint

            def timed(*given: Any, **named: Any) -> None:
                monitor.mark("data_wait")
                monitor.entering("checkpoint")
                try:
                    save(*given, **named)
                except BaseException:
                    monitor.checkpointed("failed")
                    raise
                monitor.mark("checkpoint")
                monitor.checkpointed("ok")

            # Callbacks are told before a checkpoint is written, but not after.
            trainer.save_checkpoint = timed
            self._rows, self._taken, self._norm = 0, trainer.global_step, None
            monitor.resumed(trainer.global_step)
            monitor.start()

        def on_train_batch_start(self, *_: Any) -> None:
            monitor.mark("data_wait")
            monitor.entering("forward")

        def on_before_backward(self, *_: Any) -> None:
            monitor.mark("forward")

        def on_after_backward(self, *_: Any) -> None:
            monitor.mark("backward")

        def on_before_optimizer_step(self, _: Any, module: Any, *__: Any) -> None:
            if gradient_norm:
                self._norm = _norm(module)

        def on_train_batch_end(self, trainer: Any, _: Any, outputs: Any, batch: Any, *__: Any) -> None:
            self._rows += rows_of(batch)
            if trainer.global_step == self._taken:
                return  # its gradients wait for those of more batches
            self._taken = trainer.global_step
            monitor.mark("optimizer")
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
            monitor.end(self._rows, loss=loss, gradient_norm=self._norm, learning_rate=rate)
            self._rows = 0
            monitor.start()

        def on_validation_start(self, *_: Any) -> None:
            monitor.mark("data_wait")
            monitor.entering("evaluation")

        def on_validation_end(self, *_: Any) -> None:
            monitor.mark("evaluation")

        def on_train_end(self, trainer: Any, *_: Any) -> None:
            self._ended(trainer, "completed")

        def on_exception(self, trainer: Any, *_: Any) -> None:
            self._ended(trainer, "failed")

        def _ended(self, trainer: Any, outcome: str) -> None:
            vars(trainer).pop("save_checkpoint", None)
            monitor.finished(outcome)
            monitor.drain()
            if push_url is not None:
                push(push_url, job, monitor.metrics, grouping={"instance": monitor.model})

    return Monitoring()


def rows_of(batch: Any) -> int:
    """Rows of a batch of tensors in tuples, lists or mappings, by the first that has any; 0 where there is none."""
    if hasattr(batch, "shape"):
        return int(batch.shape[0]) if len(batch.shape) else 0
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return next((rows for one in batch if (rows := rows_of(one))), 0)
    return 0


def _norm(module: Any) -> Any:
    import torch

    found = [one.grad for one in module.parameters() if one.grad is not None]
    return torch.nn.utils.get_total_norm(found) if found else None


def _callback_class() -> Any:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise ImportError("neither pytorch_lightning nor lightning is installed: pip install pytorch-lightning")
