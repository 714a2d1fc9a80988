"""Makes customers.csv, the table that the recipes beside this file train on: invented, the same for everybody.

    python recipes/table/make_customers.py

4,000 customers of 2,800 households. What they are like shows, with noise, in whether they leave, in the segment they
belong to, and in what they spend; some values, and some labels, are not known.
"""

from pathlib import Path

import numpy as np
import polars as pl

ROWS = 4000


def customers() -> pl.DataFrame:
    """The table."""
    rng = np.random.default_rng(20_240_501)
    household = rng.integers(1000, 3800, ROWS)
    wealth = rng.standard_normal(3800)[household] * 0.8 + 0.6 * rng.standard_normal(ROWS)
    age = np.clip(rng.normal(44, 15, ROWS), 18, 90).round()
    months = rng.gamma(2.0, 14.0, ROWS).round() + 1
    joined = np.datetime64("2024-05-01") - (30.4 * months + rng.integers(0, 30, ROWS)).astype("timedelta64[D]")
    plan = np.array(["basic", "plus", "premium"])[np.digitize(wealth + 0.7 * rng.standard_normal(ROWS), [-0.2, 0.9])]
    region = rng.choice(["north", "south", "east", "west", "islands"], ROWS, p=[0.3, 0.25, 0.22, 0.18, 0.05])
    visits = rng.poisson(np.exp(1.2 + 0.25 * wealth + 0.15 * (plan == "premium")))
    complaints = rng.poisson(np.exp(-1.0 + 0.5 * (region == "islands") + 0.4 * rng.standard_normal(ROWS)))
    discount = rng.random(ROWS) < 0.25
    satisfaction = np.clip(7.5 - 1.1 * complaints + 0.5 * discount + rng.normal(0, 1.3, ROWS), 0, 10).round(1)

    taste = 0.9 * (age - 44) / 15 + 0.8 * wealth + 0.7 * rng.standard_normal(ROWS)
    segment = np.array(["bargain", "family", "comfort", "luxury"])[np.digitize(taste, [-0.9, 0.3, 1.4])]
    leaving = -1.6 + 0.7 * complaints - 0.35 * (satisfaction - 6.5) - 0.02 * months + 0.4 * (plan == "basic")
    churned = rng.random(ROWS) < 1 / (1 + np.exp(-leaving))
    spend = np.exp(3.2 + 0.7 * wealth + 0.09 * visits + 0.3 * (segment == "luxury") + 0.4 * rng.standard_normal(ROWS))

    frame = pl.DataFrame(
        {
            "household": household,
            "joined": pl.Series(joined).cast(pl.Date),
            "age": age.astype(int),
            "region": region,
            "plan": plan,
            "visits": visits,
            "complaints": complaints,
            "satisfaction": satisfaction,
            "discount": discount,
            "churned": np.where(churned, "yes", "no"),
            "segment": segment,
            "spend": spend.round(2),
        }
    )
    unknown = {"age": 0.06, "region": 0.03, "satisfaction": 0.35, "churned": 0.08, "segment": 0.25, "spend": 0.05}
    for name, share in unknown.items():
        frame = frame.with_columns(frame[name].set(pl.Series(rng.random(ROWS) < share), None))
    return frame


if __name__ == "__main__":
    customers().write_csv(Path(__file__).with_name("customers.csv"))
