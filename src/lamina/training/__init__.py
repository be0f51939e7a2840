"""Stage 2: tie latent actions to real ones with few labels (FlexLAM §4.2, §6.3).

The translator is an Hourglass MLP on the flattened, null-filled K slots and the previous action, trained over the model's own p(k).
The inverse dynamics model (IDM) is the same head on an encoder of its own, without a bottleneck.
"""

from lamina.inference.encode import encode_clip, observe
from lamina.models.heads import ActionHead, Condition, HourglassMLP, InverseDynamics, Translator, TranslatorConfig
from lamina.training.alignment import AlignConfig, TranslatorNote, align, load_translator, note_of, save_translator
from lamina.training.checkpoints import BestCheckpoint
from lamina.training.heads import fit_head, head_training, idm_losses, train_idm, train_translator, translator_losses
from lamina.training.joint import JointBatch, JointModel, JointObjective, joint_losses, train_joint
from lamina.training.labelled import (
    ActionTarget,
    LabelledTransitions,
    Minibatches,
    actions_of,
    encode_labels,
    parse_labels,
    probe_data,
    split_labels,
    warn_multi_action,
)

__all__ = [
    "ActionHead",
    "ActionTarget",
    "AlignConfig",
    "BestCheckpoint",
    "Condition",
    "HourglassMLP",
    "InverseDynamics",
    "JointBatch",
    "JointModel",
    "JointObjective",
    "LabelledTransitions",
    "Minibatches",
    "Translator",
    "TranslatorConfig",
    "TranslatorNote",
    "actions_of",
    "align",
    "encode_clip",
    "encode_labels",
    "fit_head",
    "head_training",
    "idm_losses",
    "joint_losses",
    "load_translator",
    "note_of",
    "observe",
    "parse_labels",
    "probe_data",
    "save_translator",
    "split_labels",
    "train_idm",
    "train_joint",
    "train_translator",
    "translator_losses",
    "warn_multi_action",
]
