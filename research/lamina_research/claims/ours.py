"""What none of the papers has: comparisons and combinations of their methods, claimed here."""

from __future__ import annotations

from lamina_research.claims import adaptive, leaderboard, policies, robust_prefix, structured_prefix
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
        decides="On held-out triplets of MetaWorld, on one backbone, all errors of predicted pictures, over the distance of unrelated "
        "transitions. At every k = 1, 2, 4, ... K: errors of composition and of reversal below FlexLAM's, paired over seeds, and the "
        "translator's loss (512 labels) no worse than FlexLAM's; at K errors and loss no worse than ALAM's. No worse: the mean at most 5% "
        "above, and not significantly above. Void unless all three decoders use their latent. Also told: PSNR per k, and the share of each "
        "latent's variance that its decoder ignores.",
        run=structured_prefix.structured,
    ),
    Claim(
        id="lamina/robust-prefix",
        statement="With cross-exogenous training of retained prefixes, exogenous detail moves to the suffix.",
        paper="none",
        decides="Cheetah with exogenous states drawn anew at half of the steps, in paired views; FlexLAM, K slots, and the same with "
        "cross-exogenous reconstruction (weight 4) whose first K/2 slots are the paired view's. At k = K/2: consistency loss over chance "
        "and probe NMSE below FlexLAM's; consistency loss of the slots behind K/2 minus that of the first K/2 above FlexLAM's; each paired "
        "over seeds; PSNR of the whole code at most 0.2 dB below FlexLAM's. Also told: cross-exogenous reconstruction of all slots.",
        run=robust_prefix.robust,
    ),
    Claim(
        id="lamina/adaptive-k",
        statement="Choosing k per transition from what the code says takes fewer tokens for an equal loss.",
        paper="none",
        decides="FlexLAM on the Doom suite, translators of few labels. On validation: the best single k (the shortest within 0.005 nats "
        "of the lowest loss), and the rule of the action, of lengths up to that k, with the fewest tokens whose loss is at most 0.005 nats "
        "above it. On test: its mean tokens are below that k; its loss at most 0.01 nats and not significantly above; its loss below that "
        "of its own lengths shuffled over transitions; each paired over seeds, mean over draws of labels. Also told: the same for the rule "
        "of the picture, and the loss over all mean lengths.",
        run=adaptive.adaptive_k,
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
