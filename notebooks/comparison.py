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
# # Comparing policies
#
# Chat as it came to Azure, Gemma 3 12B on one 24 GB GPU, 48 at once: `scenarios/chat.toml`. The numbers are made by
#
#     kvlab compare scenarios/chat.toml
#     python3 notebooks/shrink.py kvlab-out/chat/summary.csv notebooks/data/comparison.csv.gz
#
# To compare on your own trace, give `kvlab compare` that trace, shrink its `summary.csv`, and change the path below.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

pd.set_option("display.width", 160, "display.max_columns", 20)
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

rows = pd.read_csv("data/comparison.csv.gz")
REFERENCE = "paged"
seeds = rows["seed"].nunique()
T95 = {3: 4.303, 4: 3.182, 5: 2.776, 16: 2.131}[seeds]


def table_of(metric):
    return rows.pivot(index="seed", columns="policy", values=metric)


def interval(values):
    return values.mean(), T95 * values.std(ddof=1) / np.sqrt(len(values))


# %% [markdown]
# ## Means, and paired differences
#
# All policies see the same five traces, so differences are taken trace by trace: what traces have in common cancels.
# Where the interval covers zero nothing is shown.

# %%
goodput = table_of("goodput_requests_per_s")
throughput = table_of("throughput_tokens_per_s")
lines = {}
for policy in goodput.mean().sort_values(ascending=False).index:
    mean, half = interval(goodput[policy])
    paired, paired_half = interval(goodput[policy] - goodput[REFERENCE])
    unpaired = T95 * np.sqrt((goodput[policy].var() + goodput[REFERENCE].var()) / seeds)
    word = "no difference shown"
    if policy == REFERENCE:
        word = "reference"
    elif abs(paired) > paired_half:
        word = "better" if paired > 0 else "worse"
    lines[policy] = {
        "goodput": mean, "±": half, "to paged": paired, "± paired": paired_half, "± if not paired": unpaired, "": word,
    }  # fmt: skip
lines = pd.DataFrame(lines).T
print(lines.to_string(float_format=lambda x: f"{x:.3f}"))

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
order = list(lines.index)[::-1]
for ax, data, title in [(axes[0], goodput, "goodput, requests/s"), (axes[1], throughput, "throughput, tokens/s")]:
    means = [interval(data[policy])[0] for policy in order]
    halves = [interval(data[policy])[1] for policy in order]
    ax.errorbar(means, order, xerr=halves, fmt="o", markersize=4, color="#2a5f8f", elinewidth=1)
    ax.set_xlim(left=0)
    ax.set_xlabel(title)
    ax.grid(axis="x", linewidth=0.4, alpha=0.6)
axes[0].set_title("Means with 95 % intervals", loc="left")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Where the memory goes

# %%
use = rows.groupby("policy")[["utilisation_mean", "fragmentation_internal_mean", "fragmentation_external_mean"]].mean()
print((use.loc[lines.index] * 100).to_string(float_format="%.1f"))

# %% [markdown]
# ## What is claimed
#
# Paging with prefix reuse is better than paging without and reaches the goodput of an oracle. Reservations that double are worse
# than whole ones here, as they move all the time; caches that need a run of cells for each batch lose nearly all goodput and
# about half of the throughput.

# %%
claim = "the notebook's claim no longer holds"


def difference(policy, base, data=goodput):
    mean, half = interval(data[policy] - data[base])
    return mean - half, mean + half


assert difference("paged:16+prefix", "paged")[0] > 0, claim
low, high = difference("paged:16+prefix", "clairvoyant")
assert low < 0 < high or abs(high) < 0.05 * goodput["clairvoyant"].mean(), claim
assert difference("contiguous", "paged")[1] < 0, claim
assert difference("contiguous:pow2", "contiguous")[1] < 0, claim
for policy in ["shift", "defrag"]:
    assert goodput[policy].mean() < 0.1 * goodput["paged"].mean(), (claim, policy)
    assert 0.4 < throughput[policy].mean() / throughput["paged"].mean() < 0.6, (claim, policy)
assert (goodput["unlimited"] >= goodput["clairvoyant"] - 0.05).all(), claim
print("holds")
