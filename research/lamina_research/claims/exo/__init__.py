"""The claims of Why Latent Actions Fail: latents encode exogenous state unless an auxiliary loss excludes it."""

from __future__ import annotations

from functools import partial

from lamina_research.claims.exo import cheetah, gridworld, linear
from lamina_research.experiment import Claim

PAPER = "Why Latent Actions Fail, and How to Prevent It"
#: cpu has the paper's sizes, number of seeds and training; it takes minutes of one core.
linear_claim = partial(Claim, scales=("smoke", "cpu"), seeds=(0, 1, 2, 3), together=True)

CLAIMS = (
    linear_claim(
        id="exo/leakage",
        statement="Latents encode the future exogenous state; their variance and the action error rise with p_switch.",
        paper="Prop. 4.2, Fig. 2c: curves.",
        decides="Share of z's variance that xi' makes and probe NMSE, of z as trained on minibatches: their rank correlations with "
        "p_switch are above 0 beyond their intervals. The loss that exact gradients reach is within 1% of the closed form's, the "
        "principal angles between the subspaces of B are below 0.05 rad. With switching every z that does not depend on xi' costs more.",
        run=linear.leakage,
    ),
    Claim(
        id="exo/swap",
        statement="Swapping the exogenous state of the next frame swaps what the model predicts.",
        paper="Fig. 2b: -7.3 dB against -1.9 dB.",
        decides="On paired renderings of one trajectory (distracted cheetah, LAPO): the swapped prediction is nearer to the paired next "
        "frame than to the frame's own, in PSNR, paired over seeds. Beside it: the same where half of the steps draw the exogenous state "
        "anew, and of the cross-exogenous LAM.",
        run=cheetah.swap,
    ),
    linear_claim(
        id="exo/sensitivity",
        statement="The action error rises with the encoder's sensitivity alpha to exogenous state, and with p_switch.",
        paper="Fig. 3: curves.",
        decides="Probe NMSE of z as trained on minibatches, over a grid of alpha and p_switch: its rank correlations with alpha, at each "
        "p_switch, and with p_switch, mean over alpha, are above 0 beyond their intervals; the loss that exact gradients reach is within "
        "1% of the closed form's.",
        run=linear.sensitivity,
    ),
    linear_claim(
        id="exo/remedies",
        statement="Where o determines s, cross-exogenous, action and q prediction lower the action error and make latents consistent.",
        paper="Fig. 4: curves.",
        decides="With n d_s <= d_o, so that s is a linear function of o under every exogenous state: at every p_switch above 0 each "
        "remedy's probe NMSE and share of exogenous variance at one (s, a), of z as trained on minibatches, are below plain "
        "reconstruction's, paired over seeds; the losses that exact gradients reach are within 1% of the closed form's. Beside it, without "
        "a decision: the closed forms with 24 exogenous states, where n d_s > d_o.",
        run=linear.remedies,
    ),
    linear_claim(
        id="exo/cca",
        statement="Under whitening the minimiser of cross-exogenous reconstruction is canonical correlation analysis.",
        paper="Prop. 4.6: a proof.",
        decides="Trained on white transitions for which Assumption 4.4 holds: the loss is within 1% of the closed form's, singular "
        "values of B D within 0.01 of the canonical correlations, principal angles below 0.05 rad on both sides.",
        run=linear.cca,
    ),
    linear_claim(
        id="exo/bound",
        statement="A test of the code: the bound on the consistency of latents, which is an inequality, is never violated.",
        paper="Prop. 4.8: a proof.",
        decides="Both sides of the bound, measured on held-out data for every objective, target and p_switch; only sampling or an error in "
        "the code could violate it.",
        run=linear.bound,
    ),
    Claim(
        id="exo/gridworld",
        statement="In a VQ-VAE LAM the remedies leave the exogenous region unpredicted, latents consistent over sigma.",
        paper="Section 5, Fig. 5: curves.",
        decides="At every sigma above 0 and for each remedy: the consistency loss, raw and over the spread of latents, is below the "
        "vanilla LAM's and the squared error of the exogenous region above it, paired over seeds; and that error is at least 90% of "
        "sigma^2 / 4, which is what a prediction makes when z tells nothing of the noise.",
        run=gridworld.gridworld,
    ),
    Claim(
        id="exo/cheetah",
        statement="The same holds on cheetah-run under changing colours and camera, with an EMA encoder too.",
        paper="Appendix D: a trend.",
        decides="Each remedy's probe NMSE and change of z with the next frame's exogenous state (half of its mean square over the variance "
        "of z: 1 for unrelated latents) are below vanilla LAPO's, and its latent policy's return above, paired over seeds; behaviour "
        "cloning on every action is the upper bound.",
        run=cheetah.cheetah,
    ),
)
