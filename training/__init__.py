"""LEARN: the instrumented training loop over one process or many, checkpoints, the evaluation gate, and retraining."""

from observability.wall_time import goodput
from training.artifact import Artifact, ArtifactError, read_manifest, read_vocabularies, read_weights, write_artifact
from training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from training.data import DataError, Encoding, Rows, Split, TabularNetwork, TabularTask, split_recent
from training.evaluate import Gate, GateDecision, Scores, score
from training.faults import Fault, Faults
from training.ledger import Attempt, ledger
from training.lineage import Lineage, code_revision
from training.loop import ResumeError, Trainer, TrainResult
from training.outcome import ModelRegistry, RegisteredVersion, TrainingStopped, TrainOutcome
from training.ranks import Rank
from training.reference import Beside, HeldOut, ReferenceData
from training.retrain import Champion, RetrainJob, retrain
from training.run import TrainJob, train
from training.supervisor import Limits, RunResult, Supervisor
from training.train_config import TrainConfig
from training.watch import Hang, HangLimits, Straggler, Watch, straggler

__all__ = [
    "Artifact",
    "ArtifactError",
    "Attempt",
    "Beside",
    "Champion",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "DataError",
    "Encoding",
    "Fault",
    "Faults",
    "Gate",
    "GateDecision",
    "Hang",
    "HangLimits",
    "HeldOut",
    "Limits",
    "Lineage",
    "ModelRegistry",
    "Rank",
    "ReferenceData",
    "RegisteredVersion",
    "ResumeError",
    "RetrainJob",
    "Rows",
    "RunResult",
    "Scores",
    "Split",
    "Straggler",
    "Supervisor",
    "TabularNetwork",
    "TabularTask",
    "TrainConfig",
    "TrainJob",
    "TrainOutcome",
    "TrainResult",
    "Trainer",
    "TrainingStopped",
    "Watch",
    "code_revision",
    "goodput",
    "ledger",
    "read_manifest",
    "read_vocabularies",
    "read_weights",
    "retrain",
    "score",
    "split_recent",
    "straggler",
    "train",
    "write_artifact",
]
