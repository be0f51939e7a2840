"""The claims of AC-LAM: latents that compose after the quantiser, through the decoder."""

from __future__ import annotations

from lamina.claims.experiment import Claim

PAPER = "AC-LAM"

CLAIMS = (
    Claim(
        id="ac_lam/structure",
        statement="AC-LAM has lower composition, identity and inverse errors, and its norm tells displacement better.",
        paper="Table 1: on Fractal 0.086, 0.151 and 0.156, with r = 0.489.",
        decides="The four metrics of Eq. 7 to 10, for LAMs in the style of AC-LAM, LAPA, UniVLA and villa-X on one "
        "backbone.",
    ),
    Claim(
        id="ac_lam/leakage",
        statement="A classifier reads less about the environment from AC-LAM's latent.",
        paper="Table 2: accuracy 50.2% against 63.0, 80.2 and 52.0%.",
        decides="Accuracy of an XGBoost probe over four environments, split 80/20.",
    ),
    Claim(
        id="ac_lam/design",
        statement="Composing after the quantiser works best; the inverse-dynamics form without stop-gradient "
        "collapses, stopping the sum's gradient explodes, stopping z_ik's is stable but weaker.",
        paper="Table 5: five variants.",
        decides="The five variants, with a detector of collapse and one of explosion.",
    ),
    Claim(
        id="ac_lam/norm-trajectory",
        statement="Along a trajectory the latent's norm follows the displacement.",
        paper="Fig. 1 and 3: plots.",
        decides="Correlation per episode, and the plot.",
    ),
    Claim(
        id="ac_lam/policy",
        statement="AC-LAM's latents supervise a policy better.",
        paper="Tables 3 and 4: 55/42/41 against 42/25/31.",
        decides="Closed-loop success with the latents of each LAM.",
    ),
    Claim(
        id="ac_lam/motion-transfer",
        statement="From another start, z_ij + z_jk and z_ik decode to the same frame.",
        paper="Appendix E: pictures.",
        decides="PSNR between the two decoded frames, and the picture.",
    ),
)
