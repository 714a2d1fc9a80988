"""A dataset of one's own: a CSV file with numeric columns, two tasks."""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

import mtlcli
from mtlcli.data.base import Dataset, MultiTaskData, Split, TableFeatures, fingerprint
from mtlcli.tasks import Task


@mtlcli.datasets.register("houses")
class Houses(Dataset):
    """Houses: what they sell for, and whether they sell within a month.

    Columns of the file, with a header: area, rooms, age, price, sold.
    """

    class Options(mtlcli.Options):
        """Where the file is."""

        file: Path = Field(description="the CSV file; a relative path is taken from the recipe's folder")

    def load(self):
        rows = np.genfromtxt(self.options.file, delimiter=",", names=True, dtype=np.float32)
        order = np.random.default_rng(0).permutation(len(rows))
        test, val, train = np.split(order, [len(rows) // 5, 2 * len(rows) // 5])

        columns = ("area", "rooms", "age")
        inputs = np.stack([rows[name] for name in columns], axis=1)
        inputs = (inputs - inputs[train].mean(0)) / inputs[train].std(0)
        mean, scale = float(np.nanmean(rows["price"][train])), float(np.nanstd(rows["price"][train]))

        tasks = (
            Task("price", "regression", unit="dollars", mean=mean, scale=scale),
            Task("sold", "binary"),
        )
        targets = {
            "price": torch.from_numpy((rows["price"] - mean) / scale),  # NaN where missing
            "sold": torch.from_numpy(np.nan_to_num(rows["sold"], nan=-1).astype(np.int8)),  # -1 where missing
        }
        splits = {
            name: Split(
                {"numeric": torch.from_numpy(inputs[index])},
                {task: target[torch.from_numpy(index)] for task, target in targets.items()},
            )
            for name, index in (("train", train), ("val", val), ("test", test))
        }
        features = TableFeatures(columns, {})
        return MultiTaskData(tasks, features, splits, fingerprint({"columns": columns}, splits))
