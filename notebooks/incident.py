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
# # The incident: which advice works?
#
# Gemma 3 27B on Ollama 0.6.6, on a desktop with a 48 GB and a 6 GB GPU, loses requests to `could not find a kv cache slot`.
# Each row of `scenarios/ollama-gemma3.toml` changes one thing ([docs/incident.md](../docs/incident.md)). The numbers are made by
#
#     kvlab compare scenarios/ollama-gemma3.toml --engine none
#     python3 notebooks/shrink.py kvlab-out/ollama-gemma3/summary.csv notebooks/data/incident.csv.gz

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

pd.set_option("display.width", 160, "display.max_columns", 20)
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

rows = pd.read_csv("data/incident.csv.gz")
REFERENCE = "as it was"
order = list(rows["row"].drop_duplicates())
seeds = rows["seed"].nunique()
T95 = {16: 2.131}[seeds]
# A model that cannot be loaded is one row that stands for all seeds.
runs = rows.pivot(index="seed", columns="row", values="failed").reindex(columns=order)
crashes = rows.pivot(index="seed", columns="row", values="crashes").reindex(columns=order)
print(len(rows), "runs of", rows["requests"].max(), "requests")


def interval(values):
    values = values.dropna()
    return values.mean(), T95 * values.std(ddof=1) / np.sqrt(len(values))


# %% [markdown]
# ## Crashes, and requests lost
#
# Seeds are paired: what a row does is the difference to the reference on the same trace.

# %%
table = {}
for row in order:
    mean, half = interval(crashes[row])
    change, about = interval(crashes[row] - crashes[REFERENCE])
    lost, lost_half = interval(runs[row])
    table[row] = {
        "crashes": mean, "±": half, "change": change, "± ": about, "lost requests": lost, "±  ": lost_half,
    }  # fmt: skip
table = pd.DataFrame(table).T
print(table.to_string(float_format="%.2f"))

shown = [row for row in order if not row.startswith("small GPU without")]
fig, ax = plt.subplots(figsize=(7, 4.6))
colours = ["#888888" if row == REFERENCE else "#b04030" for row in shown]
ax.barh(shown, table.loc[shown, "crashes"], xerr=table.loc[shown, "±"], color=colours, error_kw={"linewidth": 1})
for place, row in enumerate(shown):
    if table.loc[row, "crashes"] == 0:
        ax.text(0.05, place, "none", va="center", color="#2a7f3f")
ax.invert_yaxis()
ax.set_xlabel("crashes in 1,000 requests, with 95 % intervals")
ax.set_title("What each change does", loc="left")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Corruption
#
# A cure of the crash need not be a cure of the compaction that swaps K and V of neighbours.

# %%
corrupted = rows.groupby("row")["corrupted_steps"].mean().reindex(order)
print(corrupted.to_string(float_format="%.0f"))

# %% [markdown]
# ## What is claimed
#
# `num_parallel` 4 or 1, sizing as before 0.6.3, Ollama 0.12.4 and paging cure it. A longer context and a larger batch
# help and cure nothing; a smaller batch, hiding the small GPU and turning the fallback off change nothing that shows. Of
# the cures only `num_parallel 1` and `paged` end the corruption as well.

# %%
claim = "the notebook's claim no longer holds"
CURES = ["num_parallel 4", "num_parallel 1", "sized as before 0.6.3", "Ollama 0.12.4", "paged"]
assert interval(crashes[REFERENCE])[0] - interval(crashes[REFERENCE])[1] > 1, claim
for row in CURES:
    assert crashes[row].max() == 0 and runs[row].max() == 0, (claim, row)
for row in ["num_ctx 12288", "num_batch 2048"]:
    mean, half = interval(crashes[row] - crashes[REFERENCE])
    assert mean + half < 0 < crashes[row].max(), (claim, row)
mean, half = interval(crashes["num_batch 256"] - crashes[REFERENCE])
assert abs(mean) < half, claim
for row in ["small GPU hidden", "no sysmem fallback"]:
    assert (crashes[row] == crashes[REFERENCE]).all(), (claim, row)
assert [row for row in CURES if corrupted[row] == 0] == ["num_parallel 1", "paged"], claim
print("holds")
