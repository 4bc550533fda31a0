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
# # The study: when does it matter how cells are handed out?
#
# Every policy, six workloads, three machines, four memory pressures, six windows of each workload. The numbers are made by
#
#     python3 scripts/study_traces.py ../shared/traces kvlab-out/study-traces
#     kvlab sweep scenarios/study.toml
#     python3 notebooks/shrink.py kvlab-out/study/summary.csv notebooks/data/study.csv.gz
#
# and only read here. *Pressure* is what all slots need when each serves the mean request, over what the cache holds.
# There are always more requests than slots, so what is compared is throughput. Prices are those of data sheets (cost model
# `spec`): ratios between policies are what to read, not tokens per second. Where nothing else is said admission keeps no
# cells free; the sweep also has chat and RAG with a `watermark` of 5 %.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

pd.set_option("display.width", 160, "display.max_columns", 20, "display.max_rows", 200)
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

rows = pd.read_csv("data/study.csv.gz")
rows["trace"] = rows["trace"].str.replace(r"-\{seed\}.*", "", regex=True)
machines = {"gtx1660super": "4b, 6 GB", "rtx4090": "12b, 24 GB", "rtx8000": "27b, 48 GB"}
rows["machine"] = rows["gpu"].map(machines)
# The slots of a trace and machine are those of the pressures 0.5, 1, 2 and 4, in this order.
slots = rows.groupby(["trace", "machine"])["num_parallel"].rank("dense").astype(int)
rows["pressure"] = slots.map({1: 0.5, 2: 1.0, 3: 2.0, 4: 4.0})
rows["watermark"] = rows["variant"].str.removeprefix("watermark=").astype(float)
SETTING = ["trace", "machine", "pressure", "watermark"]
TRACES = ["azure-conv", "azure-code", "mooncake", "ragpulse", "agents", "incident"]
PRESSURES = [0.5, 1.0, 2.0, 4.0]
SEEDS = rows["seed"].nunique()
# Student's t for 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}[SEEDS - 1]

throughput = rows.pivot_table(index=[*SETTING, "seed"], columns="policy", values="throughput_tokens_per_s")
completed = rows.pivot_table(index=[*SETTING, "seed"], columns="policy", values="completed")
print(len(rows), "simulations;", throughput.shape[1], "policies;", len(throughput) // SEEDS, "settings;", SEEDS, "windows")


# %% [markdown]
# A difference is the logarithm of a ratio of throughputs on the same window. Where several settings are put together they
# are averaged within a window first, so that windows, which are independent, are what the interval is made of.
# A policy that loses requests which `paged` serves does less work: it is left out where it completes less than 99 %
# of what `paged` does.

# %%
whole = completed.ge(0.99 * completed["paged"], axis=0)


def interval(values):
    """Mean and half a 95 % interval over windows."""
    values = np.asarray(values, dtype=float)
    return values.mean(), T95 * values.std(ddof=1) / np.sqrt(len(values))


def chosen(table, watermark=0, **where):
    """Rows of a table by setting; each of `where` is a value or a list."""
    for name, values in {"watermark": watermark, **where}.items():
        table = table[table.index.get_level_values(name).isin(np.atleast_1d(values))]
    return table


def gain(policy, base, **where):
    """Mean gain in % of a policy over another, with the ends of its interval, and over how many settings."""
    ratio = np.log(throughput[policy] / throughput[base])
    ratio = chosen(ratio[whole[policy] & whole[base]], **where)
    # Only settings that are there in every window.
    ratio = ratio[ratio.groupby(SETTING).transform("size") == SEEDS]
    if ratio.empty:
        return np.nan, np.nan, np.nan, 0
    mean, half = interval(ratio.groupby("seed").mean())
    return *((np.exp(x) - 1) * 100 for x in (mean, mean - half, mean + half)), len(ratio) // SEEDS


def say(found):
    mean, low, high, settings = found
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if settings else "-"


def gains(policies, base, by="pressure", values=PRESSURES, **where):
    """Tables of gains: means, and texts with intervals."""
    found = {policy: {value: gain(policy, base, **{by: value}, **where) for value in values} for policy in policies}
    means = {policy: {value: of[0] for value, of in line.items()} for policy, line in found.items()}
    texts = {policy: {value: say(of) for value, of in line.items()} for policy, line in found.items()}
    return pd.DataFrame(means).T, pd.DataFrame(texts).T


lost = chosen(~whole).groupby(SETTING).any().sum()
print("settings, of", len(chosen(whole)) // SEEDS, "in which a policy completes less than 99 % of what paged does:")
print(lost[lost > 0].sort_values(ascending=False).to_string())


def plot_gains(ax, policies, base, title, **where):
    for policy in policies:
        means, lows, highs = [], [], []
        for pressure in PRESSURES:
            mean, low, high, _ = gain(policy, base, pressure=pressure, **where)
            means.append(mean), lows.append(low), highs.append(high)
        (line,) = ax.plot(PRESSURES, means, marker="o", markersize=3, label=policy)
        ax.fill_between(PRESSURES, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ax.set_xticks(PRESSURES, [f"{p:g}" for p in PRESSURES])
    ax.set_xlabel("memory pressure")
    ax.set_ylabel(f"throughput against {base}, %")
    ax.set_title(title, loc="left")
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


# %% [markdown]
# ## 1. When does contiguity cost nothing?

# %%
EXTENTS = ["contiguous:exact", "contiguous", "contiguous:pow2", "buddy", "slab"]
numbers, texts = gains(EXTENTS, "paged")
print("throughput against paged, %, with 95 % intervals, by pressure")
print(texts.to_string())

KEPT = ["azure-conv", "ragpulse"]
for watermark in [0, 0.05]:
    print(f"the same for chat and RAG, {watermark:.0%} kept free")
    print(gains(EXTENTS, "paged", watermark=watermark, trace=KEPT)[1].to_string())
by_trace = {
    (trace, policy): {pressure: gain(policy, "paged", trace=trace, pressure=pressure) for pressure in PRESSURES}
    for trace in TRACES
    for policy in EXTENTS[:3]
}
print("by trace")
print(pd.DataFrame({key: {p: say(found) for p, found in of.items()} for key, of in by_trace.items()}).T.to_string())

fig, axes = plt.subplots(1, 2, figsize=(11.5, 3.6))
plot_gains(axes[0], EXTENTS, "paged", "One extent per sequence")
plot_gains(axes[1], ["contiguous:run", "defrag", "defrag:threshold", "defrag:background"], "paged", "One run per batch")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## 2. When does defrag pay?
#
# `contiguous:run` and `defrag` place a batch in the same way; the second compacts where the first refuses. Both have attention
# walk the whole used range, so compaction pays twice: requests find room, and the range gets shorter.

# %%
DEFRAGS = ["defrag", "defrag:threshold", "defrag:step", "defrag:background"]
pays, texts = gains(DEFRAGS, "contiguous:run")
print("throughput against contiguous:run, %, by pressure")
print(texts.to_string())
pays_by_trace, texts = gains(DEFRAGS[:1], "contiguous:run", by="trace", values=TRACES)
print(texts.T.to_string())
_, texts = gains(DEFRAGS, "defrag")
print("ways to compact, against compaction on failure, %")
print(texts.to_string())
fig, ax = plt.subplots(figsize=(6.5, 3.4))
plot_gains(ax, DEFRAGS, "contiguous:run", "What compaction gains")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## 3. What does paging's internal waste cost, at which block size?

# %%
BLOCKS = {1: "paged:1", 16: "paged", 64: "paged:64", 256: "paged:256"}
waste = rows[rows["policy"].isin(BLOCKS.values())]
waste = waste.pivot_table(index=[*SETTING, "seed"], columns="policy", values="fragmentation_internal_mean") * 100
waste = chosen(waste)
waste_of = {}
for block, policy in BLOCKS.items():
    mean, half = interval(waste[policy].groupby("seed").mean())
    tight = gain(policy, "paged", pressure=[1, 2, 4])
    kept = {w: gain(policy, "paged", pressure=[1, 2, 4], trace=KEPT, watermark=w) for w in [0, 0.05]}
    waste_of[block] = mean, tight, kept
    print(
        f"blocks of {block:3}: {mean:5.2f} ±{half:.2f} % of held bytes unused; throughput against blocks of 16, %: "
        f"{say(gain(policy, 'paged', pressure=0.5))} at pressure 0.5, {say(tight)} beyond; "
        f"chat and RAG there {say(kept[0])}, with 5 % kept free {say(kept[0.05])}"
    )
_, texts = gains(["paged:1", "paged:64", "paged:256"], "paged", by="trace", values=TRACES)
print("by trace")
print(texts.T.to_string())
again = rows[rows["policy"].isin(BLOCKS.values()) & rows["trace"].isin(KEPT)].groupby(["watermark", "policy"])["recomputed_tokens"].mean().unstack()
print("tokens computed again after a preemption, mean of a simulation of chat or RAG, by what is kept free")
print(again[list(BLOCKS.values())].to_string(float_format="%.0f"))
incident = rows[rows["policy"].isin(BLOCKS.values()) & (rows["trace"] == "incident") & (rows["pressure"] >= 1)]
again_incident = incident.groupby("policy")["recomputed_tokens"].mean()
print("the same for the incident under pressure:", again_incident[list(BLOCKS.values())].round().astype(int).to_dict())

fig, axes = plt.subplots(1, 2, figsize=(11, 3.4))
for trace in TRACES:
    means = waste.xs(trace, level="trace").mean()[list(BLOCKS.values())]
    axes[0].plot(list(BLOCKS), means, marker="o", markersize=3, label=trace)
axes[0].set_xscale("log", base=4)
axes[0].minorticks_off()
axes[0].set_xticks(list(BLOCKS), list(BLOCKS))
axes[0].set_xlabel("cells in a block")
axes[0].set_ylabel("held bytes that hold nothing, %")
axes[0].set_title("Waste within blocks", loc="left")
axes[0].legend(frameon=False, fontsize=8)
plot_gains(axes[1], ["paged:1", "paged:64", "paged:256"], "paged", "What it costs")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## 4. How much of the clairvoyant bound does each reach?
#
# `clairvoyant` knows all lengths and wastes no cell, but it keeps to the split of memory between window layers and others,
# and shares no prefixes. A policy that does either may pass it.

# %%
# A policy that loses requests stays in this table, but not the settings in which it does.
POLICIES = [p for p in throughput.columns if p not in ("clairvoyant", "unlimited")]
reach, texts = gains(POLICIES, "clairvoyant")
reach = reach + 100
order = reach.mean(axis=1).sort_values(ascending=False).index
share = texts.loc[order]
print("throughput against clairvoyant, %, by pressure (settings in which requests are lost left out)")
print(share.to_string())

fig, ax = plt.subplots(figsize=(7, 6.4))
shown = reach.loc[order].dropna(how="all")
image = ax.imshow(shown, cmap="RdYlGn", vmin=0, vmax=120, aspect="auto")
ax.set_xticks(range(4), [f"{p:g}" for p in PRESSURES])
ax.set_yticks(range(len(shown)), shown.index)
ax.set_xlabel("memory pressure")
ax.set_title("Throughput, % of clairvoyant", loc="left")
for (y, x), value in np.ndenumerate(shown.to_numpy()):
    ax.text(x, y, "-" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", fontsize=8)
for side in ax.spines.values():
    side.set_visible(False)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## 5. Where do rankings flip between traces?
#
# Two policies flip where one is ahead on one trace and the other on another, both with an interval that excludes zero:
# same machine, same pressure, more than 2 % each way.

# %%
flips = []
PAIRS = list(itertools.combinations(POLICIES, 2))
logs = np.log(chosen(throughput.where(whole)))
leads = {}
for first, second in PAIRS:
    difference = (logs[first] - logs[second]).unstack("seed").dropna()
    mean = difference.mean(axis=1)
    half = T95 * difference.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    sure = (mean.abs() > half) & (mean.abs() > np.log(1.02))
    leads[first, second] = mean.where(sure).dropna()
for (first, second), lead in leads.items():
    for (machine, pressure), of in lead.groupby(["machine", "pressure"]):
        ahead, behind = of.idxmax(), of.idxmin()
        if of[ahead] > 0 > of[behind]:
            flips.append(
                {
                    "first": first, "second": second, "machine": machine, "pressure": pressure,
                    "ahead on": ahead[0], "by %": (np.exp(of[ahead]) - 1) * 100,
                    "behind on": behind[0], "of %": (np.exp(-of[behind]) - 1) * 100,
                    "least": min(of[ahead], -of[behind]),
                }
            )  # fmt: skip
flips = pd.DataFrame(flips).sort_values("least", ascending=False)
flipping = flips.groupby(["first", "second"]).size()
print(f"{len(flipping)} of {len(PAIRS)} pairs of policies flip somewhere; the largest:")
largest = flips.drop_duplicates(["first", "second"]).head(15).drop(columns="least")
print(largest.to_string(index=False, float_format="%.1f"))

# Among policies that somebody might choose between.
SHOWN = ["paged", "paged:16+prefix", "shared", "vllm", "contiguous:exact", "contiguous", "contiguous:pow2", "defrag", "ollama-0.6.6"]
among = flips[flips["first"].isin(SHOWN) & flips["second"].isin(SHOWN)].drop_duplicates(["first", "second"])
print(f"among {len(SHOWN)} policies {len(among)} of {len(SHOWN) * (len(SHOWN) - 1) // 2} pairs:")
print(among.drop(columns="least").to_string(index=False, float_format="%.1f"))

BLOCKLIKE = ["paged", "paged:64", "paged:16+prefix", "radix:16", "tiered", "shared", "vllm", "ladder"]
RUNS = ["contiguous:run", *DEFRAGS, "ollama-0.6.6", "ollama-0.12.4", "llama-unified", "swa-full"]
across = flips[flips["first"].isin(BLOCKLIKE) & flips["second"].isin(RUNS) | flips["first"].isin(RUNS) & flips["second"].isin(BLOCKLIKE)]
print(f"between blocks and batch runs: {len(across.drop_duplicates(['first', 'second']))} of {len(BLOCKLIKE) * len(RUNS)} pairs")

# Agreement of whole rankings: Kendall's tau between traces, 12b on 24 GB, pressure 2.
at = chosen(throughput.where(whole), machine="12b, 24 GB", pressure=2).groupby("trace").mean()[POLICIES]


def tau(a, b):
    both = a.notna() & b.notna()
    a, b = a[both].to_numpy(), b[both].to_numpy()
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    return np.mean(signs)


taus = pd.DataFrame({a: {b: tau(at.loc[a], at.loc[b]) for b in TRACES} for a in TRACES})
print("\nKendall's tau between rankings, 12b on 24 GB, pressure 2")
print(taus.round(2).to_string())
winners = at.idxmax(axis=1)
print("\nbest there:\n" + winners.to_string())

fig, ax = plt.subplots(figsize=(8.6, 4.4))
ranks = at[SHOWN].rank(axis=1, ascending=False).loc[TRACES]
for policy in SHOWN:
    (line,) = ax.plot(range(len(TRACES)), ranks[policy], marker="o", linewidth=2)
    ax.text(len(TRACES) - 0.9, ranks[policy].iloc[-1], policy, va="center", color=line.get_color())
ax.invert_yaxis()
ax.set_xticks(range(len(TRACES)), TRACES)
ax.set_xlim(-0.2, len(TRACES) + 0.4)
ax.set_ylabel("rank")
ax.set_title("Ranks of nine policies by trace: 12b on 24 GB, pressure 2", loc="left")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What is claimed
#
# 1. Contiguity costs nothing where prompts are all the work (`azure-code`), and next to nothing where lengths are known: 1.4 % while memory is
#    plenty. When it is short, known lengths serve 4 to 7 % more than paging, as nobody is preempted; where admission keeps 5 %
#    free paging is not preempted either, and they serve 1 to 2 % less. Reserving the whole context costs 6 % while memory is
#    plenty and up to 3 % when it is short. Reservations that grow and move cost a fifth and more.
# 2. Compaction at least doubles what batch runs serve, and pays least on the incident. Ahead of time (`threshold`) is better than on failure at
#    every pressure. Batch runs still serve half of what paging does.
# 3. Blocks of 16 leave 3 % of held bytes unused, blocks of 64 leave 7 %, blocks of 256 leave 18 %. With nothing kept free, blocks of 1, 64 and 256
#    serve 7, 2 and 9 % less than blocks of 16 under pressure, by the work that preemption throws away. Where admission keeps 5 % free (chat
#    and RAG) blocks of 1, 16 and 64 serve the same, and blocks of 256 half a per cent less.
# 4. Prefix reuse, over blocks, a tree or two tiers, and `vllm` pass the clairvoyant bound, which reuses nothing; `paged` reaches all of it while memory is
#    plenty and 92 to 95 % else; extents that move and mapped memory 58 to 87 %, batch runs 20 to 63 %.
# 5. Almost half of all pairs of policies change places between traces, `paged` and `shared` among them, and `paged` and `contiguous`; none of the
#    72 pairs of a policy of blocks and one of batch runs does.

# %%
claim = "the notebook's claim no longer holds"
assert SEEDS == 6 and len(POLICIES) == 26, claim


def lies(found, low, high):
    """Whether the whole interval does."""
    return low < found[1] and found[2] < high


# 1. Contiguity.
assert lies(gain("contiguous:exact", "paged", pressure=0.5), -2, 0), claim
assert lies(gain("contiguous:exact", "paged", pressure=[1, 2, 4]), 3, 8), claim
assert lies(gain("contiguous:exact", "paged", pressure=[1, 2, 4], trace=KEPT, watermark=0.05), -3, 0), claim
assert lies(gain("contiguous", "paged", pressure=0.5), -8, -5), claim
assert lies(gain("contiguous", "paged", pressure=[2, 4]), -5, -1), claim
for policy in ["contiguous:exact", "contiguous"]:
    assert lies(gain(policy, "paged", trace="azure-code"), -0.2, 0.2), (claim, policy)
for policy in ["contiguous:pow2", "buddy", "slab"]:
    assert lies(gain(policy, "paged"), -100, -15), (claim, policy)

# 2. Compaction.
for pressure in PRESSURES:
    assert lies(gain("defrag", "contiguous:run", pressure=pressure), 100, 200), claim
    assert lies(gain("defrag:threshold", "defrag", pressure=pressure), 10, 25), claim
assert lies(gain("defrag", "contiguous:run", trace="incident"), 0, 20), claim
assert gain("defrag", "contiguous:run", trace="ragpulse")[1] > 200, claim
assert lies(gain("defrag", "paged"), -60, -40), claim

# 3. Blocks.
assert 2.5 < waste_of[16][0] < 4 and 6 < waste_of[64][0] < 8.5 and 16 < waste_of[256][0] < 20, claim
assert lies(waste_of[1][1], -9, -5) and lies(waste_of[64][1], -4, -1) and lies(waste_of[256][1], -12, -6), claim
for block in [1, 64, 256]:
    assert waste_of[block][2][0][2] < -2, (claim, block)
assert lies(waste_of[1][2][0.05], -0.2, 0.2) and lies(waste_of[64][2][0.05], -0.2, 0.2), claim
assert lies(waste_of[256][2][0.05], -2, 0), claim
assert again_incident["paged:256"] < 0.4 * again_incident["paged"] < 0.4 * 1.2 * again_incident["paged:64"], claim

# 4. The bound.
for policy in ["paged:16+prefix", "radix:16", "tiered", "vllm"]:
    assert gain(policy, "clairvoyant")[1] > 0, (claim, policy)
assert lies(gain("paged", "clairvoyant", pressure=0.5), -0.1, 0.1), claim
for pressure in [1, 2, 4]:
    assert lies(gain("paged", "clairvoyant", pressure=pressure), -9, -3), claim
assert lies(gain("contiguous:run", "clairvoyant"), -85, -75), claim

# 5. Flips.
assert 0.4 < len(flipping) / len(PAIRS) < 0.6, claim
assert ("paged", "shared") in flipping.index and ("contiguous", "paged") in flipping.index, claim
assert across.empty, claim
print("holds")
