"""LEARN: the instrumented training loop, checkpoints that survive a kill, the evaluation gate, and retraining."""

from training.artifact import Artifact, ArtifactError, read_manifest, read_vocabularies, read_weights, write_artifact
from training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from training.data import DataError, Encoding, Rows, Split, TabularNetwork, TabularTask, split_recent
from training.evaluate import Gate, GateDecision, Scores, score
from training.lineage import Lineage, code_revision
from training.loop import ResumeError, TrainConfig, Trainer, TrainResult
from training.reference import Beside, HeldOut, ReferenceData
from training.retrain import Champion, RetrainJob, retrain
from training.run import ModelRegistry, RegisteredVersion, TrainingStopped, TrainJob, TrainOutcome, train

__all__ = [
    "Artifact",
    "ArtifactError",
    "Beside",
    "Champion",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "DataError",
    "Encoding",
    "Gate",
    "GateDecision",
    "HeldOut",
    "Lineage",
    "ModelRegistry",
    "ReferenceData",
    "RegisteredVersion",
    "ResumeError",
    "RetrainJob",
    "Rows",
    "Scores",
    "Split",
    "TabularNetwork",
    "TabularTask",
    "TrainConfig",
    "TrainJob",
    "TrainOutcome",
    "TrainResult",
    "Trainer",
    "TrainingStopped",
    "code_revision",
    "read_manifest",
    "read_vocabularies",
    "read_weights",
    "retrain",
    "score",
    "split_recent",
    "train",
    "write_artifact",
]
