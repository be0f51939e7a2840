"""The claims of FlexLAM (arXiv 2606.19408): retained prefixes make one latent action work at every budget."""

from __future__ import annotations

from lamina.claims.experiment import Claim

PAPER = "FlexLAM, arXiv 2606.19408"

CLAIMS = (
    Claim(
        id="flexlam/matched-budget",
        statement="With scarce labels, one FlexLAM beats a separately trained Fixed-K at every budget k.",
        paper="Section 5.2, Fig. 3: FlexLAM wins at k = 4, 16 and 64 with 0.025% of the labels.",
        decides="Held-out translator loss of FlexLAM@k is below that of Fixed-Kk at every k, paired over seeds; "
        "the same for normalized return in closed loop.",
    ),
    Claim(
        id="flexlam/label-scaling",
        statement="FlexLAM's gap over Fixed-K depends on the number of labels, and is there where labels are scarce.",
        paper="Fig. 3, left: a curve.",
        decides="Held-out translator loss against the number of labels, for Fixed-K and FlexLAM.",
    ),
    Claim(
        id="flexlam/narrow-source",
        statement="With labels from a single low-return task FlexLAM stays stable where a loose Fixed-K is fragile.",
        paper="Section 5.3, Fig. 4: Fixed-K64 falls below the random policy on one task.",
        decides="Loss and return on the other tasks, against the same number of labels drawn from all tasks.",
    ),
    Claim(
        id="flexlam/prefix-scaling",
        statement="Inside one model alignment improves with the prefix length k, and short prefixes stay usable.",
        paper="Section 6.2, Fig. 7: the loss falls with k.",
        decides="Held-out translator loss over all k, and its Spearman correlation with k.",
    ),
    Claim(
        id="flexlam/token-budget",
        statement="16 of 64 tokens keep most of the return at a fraction of the latency.",
        paper="Section 6.2, Table 2: 95% of the return at 3.6 times lower latency.",
        decides="Ratio of returns and ratio of decision-step latencies, by the protocol of Appendix B.6.",
    ),
    Claim(
        id="flexlam/joint-alignment",
        statement="Inverse dynamics can beat a frozen LAM; tuned jointly the order reverses, and FlexLAM gains most.",
        paper="Section 6.3: the order of the methods.",
        decides="Validation loss of inverse dynamics, Fixed-K and FlexLAM, frozen and joint, with 0.5% of the labels.",
    ),
    Claim(
        id="flexlam/reconstruction",
        statement="Reconstruction improves with the prefix length, and beats a fixed VQ code.",
        paper="Section 5.4, Table 1: PSNR, SSIM and LPIPS improve from k = 5 to 20 to 80, and beat villa-X's LAM.",
        decides="Per-frame PSNR, SSIM and LPIPS over k, against a villa-X style LAM (VQ, 32 codes) of equal encoder.",
    ),
    Claim(
        id="flexlam/round-trip",
        statement="A latent action moves to another embodiment or scene, and back.",
        paper="Section 6.1, Fig. 6: pictures.",
        decides="PSNR of the round trip against copy-frame and against a shuffled latent, and the picture.",
    ),
    Claim(
        id="flexlam/translator-conditioning",
        statement="The latent with the previous action beats the latent alone; adding the frame overfits few labels.",
        paper="Appendix D.1: the order of the translators.",
        decides="Held-out loss of three translators on the same labels.",
    ),
    Claim(
        id="flexlam/prefix-distribution",
        statement="Drawing short or long prefixes more often trades compression against detail.",
        paper="Appendix A.7: no figure.",
        decides="Loss over k for three distributions p(k).",
    ),
)
