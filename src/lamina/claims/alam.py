"""The claims of ALAM (arXiv 2605.10819): latents that add up and reverse."""

from __future__ import annotations

from lamina.claims.experiment import Claim

PAPER = "ALAM, arXiv 2605.10819"

CLAIMS = (
    Claim(
        id="alam/algebra",
        statement="The two losses lower the errors of additivity and reversal by one to two orders of magnitude.",
        paper="Section 4.1: 46 and 25 times lower at 5k, 85 times lower at k.",
        decides="Add(t) and Rev(t) for t = k to 5k on held-out episodes, one encoder with and without the two losses; "
        "also divided by the mean latent norm, so that an encoder which shrinks every latent doesn't win.",
    ),
    Claim(
        id="alam/horizon",
        statement="Direct and cumulative reconstruction degrade more slowly as the horizon grows.",
        paper="Section 4.1, Fig. 4B: +2.89 dB and +1.58 dB at 5k.",
        decides="Change of PSNR, SSIM and LPIPS from each model's own score at k steps.",
    ),
    Claim(
        id="alam/losses",
        statement="Each of the two losses helps, and both together help most.",
        paper="Table 4: success 58.3, 63.6, 67.2 and 78.0.",
        decides="Downstream success and algebra errors of the five variants.",
    ),
    Claim(
        id="alam/coupling",
        statement="Structured latents, joint generation and flow matching add to one another.",
        paper="Table 3: success 38.2 to 85.0.",
        decides="Success of six variants on held-out task seeds.",
    ),
    Claim(
        id="alam/policy",
        statement="ALAM's latents raise the success of a flow policy on MetaWorld.",
        paper="Table 1: 47.9 to 85.0 on MT50.",
        decides="Success per tier of a policy with and without latents, on the same budget of scripted-expert data.",
    ),
    Claim(
        id="alam/interventions",
        statement="Freezing, masking or shuffling the latent stream at test time hurts the policy.",
        paper="Appendix F: 85.0 falls to between 75 and 77.",
        decides="Success of one trained policy under the three interventions.",
    ),
    Claim(
        id="alam/transfer",
        statement="Latents of one domain, composed, act in another.",
        paper="Appendix E: pictures.",
        decides="PSNR of the composed rollout against the direct one, and the picture.",
    ),
)
