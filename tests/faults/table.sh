#!/usr/bin/env bash
# The fault table in Markdown, from the CELL lines of one or more logs of cells_test: tests/faults/table.sh LOG...
# Of several runs of a cell the slowest times are shown, and every outcome that was seen; what is expected, of seed 1.
set -euo pipefail
cat "$@" | grep '^CELL|' | sort -s -t'|' -k2,2n | awk -F'|' '
  {
    if (!($3 in runs)) order[++n] = $3
    ++runs[$3]
    if ($5 != "" && index(became[$3], $5) == 0) became[$3] = became[$3] (became[$3] == "" ? "" : "; ") $5
    if ($9 != "" && ($4 == 1 || expected[$3] == "")) expected[$3] = $9
    if ($6 > unblocked[$3]) unblocked[$3] = $6
    if ($7 > recovered[$3]) recovered[$3] = $7
    if ($8 > healed[$3]) healed[$3] = $8
  }
  END {
    print "| test | who | fault | step | expected | what became of the version | unblocked s | next committed s | all ready s | runs |"
    print "|---|---|---|---|---|---|---|---|---|---|"
    for (i = 1; i <= n; ++i) {
      name = order[i]
      split(name, part, "_")
      step = substr(name, length(part[1]) + length(part[2]) + 3)
      printf "| `%s` | %s | %s | %s | %s | %s | %.2f | %.2f | %.2f | %d |\n", name, part[1], part[2], step, expected[name],
             became[name], unblocked[name], recovered[name], healed[name], runs[name]
    }
  }'
