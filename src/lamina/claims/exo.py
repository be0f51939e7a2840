"""The claims of Why Latent Actions Fail: exogenous state enters the code unless it is kept out."""

from __future__ import annotations

from lamina.claims.experiment import Claim

PAPER = "Why Latent Actions Fail, and How to Prevent It"

CLAIMS = (
    Claim(
        id="exo/leakage",
        statement="Latents encode the future exogenous state; their variance and the action error rise with p_switch.",
        paper="Prop. 4.2, Fig. 2c: curves.",
        decides="Normalized variance and probe NMSE over p_switch; the trained loss against the closed-form optimum.",
    ),
    Claim(
        id="exo/swap",
        statement="Swapping the exogenous state of the next frame swaps what the model predicts.",
        paper="Fig. 2b: -7.3 dB against -1.9 dB.",
        decides="The three PSNRs on paired renderings of one trajectory.",
    ),
    Claim(
        id="exo/sensitivity",
        statement="The action error rises with the encoder's sensitivity alpha to exogenous state, and with p_switch.",
        paper="Fig. 3: curves.",
        decides="Probe NMSE over a grid of alpha and p_switch.",
    ),
    Claim(
        id="exo/remedies",
        statement="Cross-exogenous, action and q prediction lower the action error and make latents consistent.",
        paper="Fig. 4: curves.",
        decides="Change of probe NMSE and of normalized variance.",
    ),
    Claim(
        id="exo/cca",
        statement="Under whitening the minimiser of cross-exogenous reconstruction is canonical correlation analysis.",
        paper="Prop. 4.6: a proof.",
        decides="Canonical correlations and subspace angles, trained against closed form.",
    ),
    Claim(
        id="exo/bound",
        statement="The bound on the consistency of latents holds.",
        paper="Prop. 4.8: a proof.",
        decides="Both sides of the bound, measured; it is never violated.",
    ),
    Claim(
        id="exo/gridworld",
        statement="In a VQ-VAE LAM the remedies leave the exogenous region unpredicted, latents consistent over sigma.",
        paper="Section 5, Fig. 5: curves.",
        decides="Consistency loss and MSE of the exogenous region over sigma, 3 seeds.",
    ),
    Claim(
        id="exo/cheetah",
        statement="The same holds on cheetah-run under changing colours and camera, with an EMA encoder too.",
        paper="Appendix D: a trend.",
        decides="Probe NMSE and normalized return of the latent policy, with behaviour cloning as the upper bound.",
    ),
)
