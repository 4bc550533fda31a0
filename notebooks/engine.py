# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# %% [markdown]
# # The simulator beside the engine
#
# The same scheduler and the same policies choose the cells of a real model's K and V, and of nothing in virtual time
# ([docs/validate.md](../docs/validate.md)). The model is the tiny Gemma 3 that comes with kvlab, on one thread. The numbers are
# measurements of one computer, made by
#
#     for s in light tiny; do
#         kvlab validate scenarios/validate-$s.toml --repeats 3 --processor-time --threads 1 --out kvlab-out/$s
#     done
#     python3 notebooks/shrink.py --validate kvlab-out/light kvlab-out/tiny notebooks/data

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

pd.set_option("display.width", 160, "display.max_columns", 20, "display.max_rows", 100)
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

numbers = pd.read_csv("data/engine-validate.csv.gz")
errors = pd.read_csv("data/engine-errors.csv.gz")
steps = pd.read_csv("data/engine-steps.csv.gz")
print(errors[["scenario", "policy", "engine's steps priced", "lock-step", "both: latency"]].to_string(index=False))

# %% [markdown]
# ## Measured beside predicted
#
# Bars are the 95 % interval of the mean of three runs on the engine.

# %%
KEYS = ["ttft mean ms", "tpot mean ms", "latency mean ms", "throughput tok/s"]
shown = numbers[numbers["number"].isin(KEYS) & (numbers["measured"] > 0)].copy()
shown["error"] = shown["error"] * 100
print(shown[["scenario", "policy", "number", "measured", "±", "predicted", "error", "gate"]].to_string(index=False, float_format="%.3g"))

fig, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for ax, number in zip(axes, KEYS):
    for scenario, of in shown[shown["number"] == number].groupby("scenario", sort=False):
        half = of["measured"] * of["±"].fillna(0)
        ax.errorbar(of["measured"], of["predicted"], xerr=half, fmt="o", markersize=4, elinewidth=1, label=scenario)
    ends = np.array([ax.get_xlim(), ax.get_ylim()])
    ends = [max(min(ends[0, 0], ends[1, 0]), shown.loc[shown["number"] == number, "measured"].min() / 2), ends[:, 1].max()]
    ax.plot(ends, ends, color="0.6", linewidth=0.8)
    ax.set_xscale("log"), ax.set_yscale("log")
    ax.set_xlabel("measured"), ax.set_ylabel("predicted")
    ax.set_title(number, loc="left")
axes[0].legend(frameon=False)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Step by step
#
# The engine's own steps, priced: nothing of scheduler or policy is in this error.

# %%
steps["error"] = steps["predicted_ns"] / steps["step_ns"] - 1
priced = steps.groupby(["scenario", "kind"])["error"].describe(percentiles=[0.1, 0.5, 0.9])[["count", "10%", "50%", "90%"]]
print(priced.to_string(float_format="%.3f"))
fig, ax = plt.subplots(figsize=(5.5, 4))
for kind, of in steps.groupby("kind"):
    ax.scatter(of["step_ns"] / 1e6, of["predicted_ns"] / 1e6, s=5, alpha=0.4, linewidths=0, label=kind)
ends = np.quantile(steps["step_ns"] / 1e6, [0.0, 1.0])
ax.plot(ends, ends, color="0.3", linewidth=0.8)
ax.set_xscale("log"), ax.set_yscale("log")
ax.set_xlabel("measured, ms"), ax.set_ylabel("predicted, ms")
ax.set_title("Every 50th step", loc="left")
ax.legend(frameon=False, markerscale=3)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What is claimed
#
# Told the engine's step times the simulator does exactly what the engine did. With prices of its own it says what four
# policies cost within the gates (5 % of TTFT, 3 % of TPOT and latency, 8 % of tails) where more is asked for than the cache can hold (`tiny`);
# where there is room to spare (`light`) compacted runs vary too much between the runs on the engine to tell. It ranks the policies as they are measured: paging first, compacted batch runs at about
# half of its throughput, batch runs that are never compacted at less than a fifth.

# %%
claim = "the notebook's claim no longer holds"
assert (errors["lock-step"] == "exact").all(), claim
assert not numbers["gate"].fillna("").str.startswith("fail").any(), claim
tight = numbers[(numbers["scenario"] == "tiny") & numbers["gate"].notna()]
passing = tight.groupby("policy")["gate"].agg(lambda gates: gates.str.startswith("pass").all())
assert len(passing) == 4 and passing.all(), (claim, passing)
for column in ["measured", "predicted"]:
    of = numbers[(numbers["scenario"] == "tiny") & (numbers["number"] == "throughput tok/s")]
    of = of.set_index("policy")[column]
    assert of.idxmax() == "paged:16", claim
    assert 0.4 < of["defrag"] / of["paged:16"] < 0.65, (claim, of)
    assert of["contiguous:run"] < 0.2 * of["paged:16"], (claim, of)
print("holds")
