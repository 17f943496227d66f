"""Print some answers of a table that `mmrag-batch predict` wrote: python show.py out.csv"""

import csv
import sys

SHOWN = 12

with open(sys.argv[1], encoding="utf-8", newline="") as stream:
    rows = list(csv.DictReader(stream))
for row in rows[:SHOWN]:
    sure = f"{float(row['confidence']):.0%}" if row["confidence"] else "-"
    mark = "ok " if row["prediction"] == row["label"] else "NOT"
    print(f"{mark} {row['kind']:16} {row['question_text']:50} {row['prediction']:10} {sure:>5}")
print(f"... and {len(rows) - SHOWN} more in {sys.argv[1]}")
