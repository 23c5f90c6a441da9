"""Train a linear classifier of handwritten digits, attack it, and check whether its robust accuracy can be trusted."""

import torch
from sklearn.datasets import load_digits

import moat

digits = load_digits()
x, y = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)  # (N, 1, 8, 8) in [0, 1]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for _ in range(300):
    loss = torch.nn.functional.cross_entropy(model(x[:1500]), y[:1500])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
x, y = x[1500:1600], y[1500:1600]
pgd10 = {"attack": "pgd", "eps": "8/255", "step_size": "2/255", "steps": 10}
rows = moat.evaluate(model, x, y, {"clean": {"attack": "none"}, "pgd10": pgd10}, batch_size=100)
print(rows.groupby("setting")["correct"].mean())
report = moat.verify(model, x, y, eps=8 / 255)
print(repr(report))
