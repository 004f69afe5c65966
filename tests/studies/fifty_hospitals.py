"""Tables of made-up hospitals that fit fifty-hospitals.yaml."""

import csv
import math
import random
from pathlib import Path

COLUMNS = ("age", "pressure", "glucose", "sex", "smoker", "readmitted")


def write_hospitals(folder: Path, hospitals: int = 50, patients: int = 80) -> dict[str, Path]:
    """One CSV for each: patients of one population, of whom each hospital sees older or younger ones."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: _write(folder / f"{name}.csv", name, patients) for name in map("hospital{:02}".format, range(hospitals))
    }


def _write(path: Path, name: str, patients: int) -> Path:
    chance = random.Random(name)  # noqa: S311 - made-up patients
    middle = chance.uniform(50, 70)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for _ in range(patients):
            age = min(100.0, max(18.0, chance.gauss(middle, 12)))
            pressure = min(220.0, max(80.0, chance.gauss(135, 18)))
            glucose = min(350.0, max(50.0, chance.gauss(120, 35)))
            male, smoker = chance.random() < 0.5, chance.random() < 0.3
            logit = (age - 60) / 8 + (pressure - 135) / 15 + (glucose - 120) / 40 + 0.4 * male + 1.2 * smoker - 0.6
            ill = chance.random() < 1 / (1 + math.exp(-logit))
            words = ("male" if male else "female", "yes" if smoker else "no")
            table.writerow([f"{age:.1f}", f"{pressure:.0f}", f"{glucose:.0f}", *words, int(ill)])
    return path
