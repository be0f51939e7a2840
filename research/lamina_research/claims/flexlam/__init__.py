"""The claims of FlexLAM (arXiv 2606.19408): one latent action whose prefixes work at every budget."""

from __future__ import annotations

from lamina_research.claims.flexlam import alignment, closed_loop, pictures
from lamina_research.experiment import Claim

PAPER = "FlexLAM, arXiv 2606.19408"

CLAIMS = (
    Claim(
        id="flexlam/matched-budget",
        statement="With scarce labels, one FlexLAM beats a separately trained Fixed-K at every budget k.",
        paper="Section 5.2, Fig. 3: FlexLAM wins at k = 4, 16 and 64 with 0.025% of the labels.",
        decides="Held-out translator loss of FlexLAM@k is below that of Fixed-Kk at every k, paired over seeds; "
        "the same for normalized return in closed loop.",
        run=closed_loop.matched_budget,
    ),
    Claim(
        id="flexlam/label-scaling",
        statement="FlexLAM's gap over Fixed-K depends on the number of labels, and is there where labels are scarce.",
        paper="Fig. 3, left: a curve.",
        decides="Fixed-K's held-out loss minus FlexLAM's, mean over budgets, is above 0 with scarce labels and smaller with the "
        "most labels of the curve, paired over seeds.",
        run=alignment.label_scaling,
    ),
    Claim(
        id="flexlam/narrow-source",
        statement="With labels from a single low-return task FlexLAM stays stable where a loose Fixed-K is fragile.",
        paper="Section 5.3, Fig. 4: Fixed-K64 falls below the random policy on one task.",
        decides="On the other tasks, at the largest budget: FlexLAM's loss and its rise over as many labels drawn from all tasks are "
        "below those of Fixed-K, and its return is above; each paired over seeds.",
        run=alignment.narrow_source,
    ),
    Claim(
        id="flexlam/prefix-scaling",
        statement="Inside one model alignment improves with the prefix length k, and short prefixes stay usable.",
        paper="Section 6.2, Fig. 7: the loss falls with k.",
        decides="Held-out translator loss over all k: its Spearman correlation with k is below 0 beyond its interval, and "
        "the loss at k = 1 is below that of shuffled latents at k = 1 with the same draws of labels, paired over seeds.",
        run=alignment.prefix_scaling,
    ),
    Claim(
        id="flexlam/token-budget",
        statement="16 of 64 tokens keep most of the return at a fraction of the latency.",
        paper="Section 6.2, Table 2: 95% of the return at 3.6 times lower latency.",
        decides="Ratio of returns at a quarter of the tokens (at least 95% beyond its interval), and ratio of decision-step latencies of "
        "k = 64 and k = 16 at K = 64 (at least 3.6), by the protocol of Appendix B.6.",
        run=closed_loop.token_budget,
    ),
    Claim(
        id="flexlam/joint-alignment",
        statement="Inverse dynamics can beat a frozen LAM; tuned jointly the order reverses, and FlexLAM gains most.",
        paper="Section 6.3: the order of the methods.",
        decides="Held-out loss of inverse dynamics, Fixed-K and FlexLAM, frozen and joint, with the same draw of labels: inverse "
        "dynamics leads the frozen LAMs, joint FlexLAM leads inverse dynamics, FlexLAM gains more than Fixed-K; each paired "
        "over seeds.",
        run=alignment.joint_alignment,
    ),
    Claim(
        id="flexlam/reconstruction",
        statement="Reconstruction improves with the prefix length, and beats a fixed VQ code.",
        paper="Section 5.4, Table 1: PSNR, SSIM and LPIPS improve from k = 5 to 20 to 80, and beat villa-X's LAM.",
        decides="Per-frame PSNR and SSIM rise at each of three budgets, and at the largest they are above those of a "
        "villa-X style LAM (one VQ token of 32 codes) of equal encoder and decoder, paired over seeds.",
        run=pictures.reconstruction,
    ),
    Claim(
        id="flexlam/round-trip",
        statement="A latent action moves to another embodiment or scene, and back.",
        paper="Section 6.1, Fig. 6: pictures.",
        decides="PSNR of the round trip is above copy-frame's and above that of another transition's latent, paired over "
        "seeds; and the picture.",
        run=pictures.round_trip,
    ),
    Claim(
        id="flexlam/translator-conditioning",
        statement="The latent with the previous action beats the latent alone; adding the frame overfits few labels.",
        paper="Appendix D.1: the order of the translators.",
        decides="Held-out loss of three translators on the same labels: with the previous action it is below both others, "
        "paired over seeds.",
        run=alignment.translator_conditioning,
    ),
    Claim(
        id="flexlam/prefix-distribution",
        statement="Drawing short or long prefixes more often trades compression against detail.",
        paper="Appendix A.7: no figure.",
        decides="Held-out loss for three p(k): the one biased short is better at k = 1 than the one biased long, and the other "
        "way round at k = K, paired over seeds.",
        run=alignment.prefix_distribution,
    ),
)
