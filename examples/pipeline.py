"""The whole pipeline in Python: train, align, label, evaluate, and a policy in a control loop."""

import lamina

run = lamina.train(
    "flexlam", "data/doom", out="runs/doom", steps=500, image=(48, 48), batch=32, lr=2e-3, decoder="unet"
)
heads = lamina.align(run, "data/doom", labels="5%")
table = lamina.label(run, "data/doom", out="data/labelled")
result = lamina.evaluate(run, "data/doom")
print(heads.validation_loss, table.latents.shape, result.summary)

policy = lamina.train_policy(run, "data/doom", steps=200)
frame = lamina.open_dataset("data/doom").frames_of(0)[0]
print(policy.act(frame))
