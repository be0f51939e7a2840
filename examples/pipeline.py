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
data = lamina.open_dataset("data/doom")
frame = data.frames(data.episodes[0], data.cameras[0], 0, 1, (48, 48))[0]
policy.reset()
print(policy.act(frame))
