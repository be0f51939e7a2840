"""Stage 2: tie latent actions to real ones with few labels (FlexLAM §4.2, §6.3).

The translator is an Hourglass MLP on the flattened, null-filled K slots and the previous action, trained over the model's own p(k).
The inverse dynamics model (IDM) is the same head on an encoder of its own, without a bottleneck.
"""

from lamina.inference.encode import encode_clip, observe
from lamina.models.heads import ActionHead, Condition, Hourglass, InverseDynamics, Translator, TranslatorConfig
from lamina.training.alignment import AlignConfig, align, load_translator, note_of, save_translator, training_of
from lamina.training.checkpoints import Best
from lamina.training.heads import fit_head, idm_losses, quick, train_idm, train_translator, translator_losses
from lamina.training.joint import Joint, JointBatch, joint_losses, train_joint
from lamina.training.labelled import (
    Actions,
    Labelled,
    Minibatches,
    actions_of,
    labelled,
    parse_labels,
    probe_data,
    split_labels,
    tell_span,
)

__all__ = [
    "ActionHead",
    "Actions",
    "AlignConfig",
    "Best",
    "Condition",
    "Hourglass",
    "InverseDynamics",
    "Joint",
    "JointBatch",
    "Labelled",
    "Minibatches",
    "Translator",
    "TranslatorConfig",
    "actions_of",
    "align",
    "encode_clip",
    "fit_head",
    "idm_losses",
    "joint_losses",
    "labelled",
    "load_translator",
    "note_of",
    "observe",
    "parse_labels",
    "probe_data",
    "quick",
    "save_translator",
    "split_labels",
    "tell_span",
    "train_idm",
    "train_joint",
    "train_translator",
    "training_of",
    "translator_losses",
]
