"""What none of the papers has: comparisons and combinations of their methods, claimed here."""

from __future__ import annotations

from lamina_research.claims import leaderboard, policies
from lamina_research.claims.feature_control import feature_control
from lamina_research.experiment import Claim

PAPER = "Lamina's own"

CLAIMS = (
    Claim(
        id="lamina/few-label-policy",
        statement="Episodes without actions are worth labelled demonstrations to a policy that generates their latents.",
        paper="none",
        decides="Success on held-out starts over 1, 2, 5, 10 and 25 labelled episodes of a task, with ALAM's latents of all episodes and "
        "with actions alone: above it, paired over seeds, at 1, 2 and 5. The worth is the number of labelled episodes that gives actions "
        "alone the same success.",
        run=policies.few_labels,
    ),
    Claim(
        id="lamina/leaderboard",
        statement="All methods can be compared by every probe on one backbone, data set and budget.",
        paper="none",
        decides="`lamina compare` on the Doom suite and on MetaWorld gives every built-in method a row, with a figure of every probe that "
        "its latent and decoder allow or the reason why it failed, beside every reference and control, with intervals over seeds. The "
        "order of the methods is reported; it decides nothing.",
        run=leaderboard.leaderboard,
        together=True,
    ),
    Claim(
        id="lamina/structured-prefix",
        statement="Retained prefixes and additive composition work in one model: every prefix composes.",
        paper="none",
        decides="Algebra errors per k; matched-budget and structure metrics both no worse than the better parent.",
    ),
    Claim(
        id="lamina/robust-prefix",
        statement="With cross-exogenous training of retained prefixes, exogenous detail moves to the suffix.",
        paper="none",
        decides="Consistency loss and probe NMSE per k.",
    ),
    Claim(
        id="lamina/adaptive-k",
        statement="Choosing k per transition from what the code says takes fewer tokens for an equal loss.",
        paper="none",
        decides="Mean number of tokens at equal translator loss, against the best single k.",
    ),
    Claim(
        id="lamina/feature-control",
        statement="A LAM's latent says more about the action than the plain features that it is built on.",
        paper="none; LARYBench (arXiv 2604.11689) finds that general frozen encoders beat today's LAMs.",
        decides="NMSE of a linear probe of the action, on Doom, MetaWorld and the cheetah, on seen and on unseen tasks: that of FlexLAM's "
        "latent on frozen features below that of the plain features of the pair, at equal width and equal labels, paired over seeds, in "
        "each of the six. Also told: the plain pixels of the pair, and whether the LAM on features is below two LAMs on pixels.",
        run=feature_control,
    ),
)
