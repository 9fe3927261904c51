#!/bin/bash
# Breaks the storage engine in known ways, one at a time, in a copy of the tree, and says whether the tests notice.
# Usage: fabric/tests/mutants.sh DIR [WORD]
#   DIR: an empty or missing directory for the copy; its target/ is reused. WORD: only mutants whose names contain it.
# The seeds: PENSTOCK_SEEDS (20).
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
copy=${1:?a directory for the copy}
only=${2:-}
mkdir -p "$copy"
(cd "$root" && git ls-files -co --exclude-standard -z | tar c --null -T -) | tar x -C "$copy"
export PENSTOCK_SEEDS=${PENSTOCK_SEEDS:-20}
survivors=0

# name ~ file ~ from ~ to
mutants=(
  'a drain does not flush~lane/drain.rs~self.flush(drain).await~{ let _ = drain; Ok(()) }'
  'a log write is not FUA~log/append.rs~if self.write_cache { IoFlags::FUA }~if false { IoFlags::FUA }'
  'a write is acknowledged before it is durable~lane/write.rs~match (*lsn < durable, self~match (true, self'
  'a batch is durable when one after it is~log/append.rs~self.in_flight.front().is_some_and(InFlight::is_durable)~!self.in_flight.is_empty()'
  'the chain is not looked at~log/replay.rs~header.chain.get() != position.chain~false'
  'a torn payload is taken~format/log.rs~if self.crc_with(payload) != self.crc.get()~if false'
  'what is read is not verified~lane/read.rs~if !verify(&header, &piece, &buf)~if false'
  'space is given back while it is read~lane/disks.rs~if self.pins.contains_key(&id) {~if false {'
  'a snapshot shares nothing~lane/drain.rs~alone_from = self.state.next_egroup;~alone_from = shard.alone_from;'
  'a clone shares nothing~lane/commit.rs~shard_op(shard, root, mapped, core.state.next_egroup)~shard_op(shard, root, mapped, 0)'
  'dead blocks are not counted~lane/drain.rs~*drain.dead.entry(dead.egroup).or_insert(0) += dead.blocks;~'
  'the log is trimmed to its end~lane/checkpoint.rs~core.log.trim(checkpoint.replay_from.segment);~let end = core.log.durable_end().segment; core.log.trim(end);'
  'an encoded extent is not verified~egroup.rs~return header.crc(&piece.entry, 0) == Some(crc32c(stored));~return true;'
  'a revert leaves the tables~lane/commit.rs~self.tables.forget_shard(shard, lsn);~'
  'a drain overrides a revert~lane/drain.rs~map.reverts == self.reverts.get(&map.shard).copied().unwrap_or(0)~true'
  'a reader sees what is not durable~lane/read.rs~if read.seen < self.log.durable_end().lsn {~if true {'
  'a batch is durable without a home that failed~log.rs~self.waiting.count() == 0 && self.failed.count() == 0~self.waiting.count() == 0'
  'a batch that one home lacks is not given to it~lane/open.rs~mend(flow, batches).await?;~let _ = batches;'
  'a checkpoint is not given to a home that lacks it~lane/open.rs~for home in homes {~for home in homes.iter().take(0) {'
  'the other copy is not read~lane/read.rs~Err(status) if self.has_another(&mut read)~Err(status) if status == IoStatus::Success && self.has_another(&mut read)'
  'a bad copy is not written again~lane/repair.rs~if !bad.iter().any(|number|~if bad.len() < 100 || !bad.iter().any(|number|'
  'copies are switched before they are flushed~lane/repair.rs~for spot in &spots {~for spot in spots.iter().take(0) {'
  'both copies go to one disk~lane/disks.rs~if spots.len() < copies {~while spots.len() < copies {'
  'a disk that is out is believed~pool.rs~!known || newest.state(number) == DiskState::Out~!known'
  'a joined home is one before its checkpoint~lane/disks.rs~if done.await? {~if done.await? || true {'
  'space that a copy keeps is given back~state.rs~old.space_without(&new)~Some(old.space()).filter(|_| old != new)'
)

for mutant in "${mutants[@]}"; do
  IFS='~' read -r name file from to <<<"$mutant"
  [[ $name == *"$only"* ]] || continue
  # Copied, not linked, and with new times: cargo must see that it changed.
  rm -rf "$copy/fabric" && cp -r "$root/fabric" "$copy/fabric"
  path="$copy/fabric/src/$file"
  if ! FROM="$from" TO="$to" python3 - "$path" <<'PY'
import os, sys
path, before, after = sys.argv[1], os.environ["FROM"], os.environ["TO"]
text = open(path).read()
if before not in text:
    sys.exit(1)
open(path, "w").write(text.replace(before, after))
PY
  then echo "STALE    $name: $file has no such place"; survivors=$((survivors + 1)); continue; fi
  output=$(cd "$copy" && timeout 900 cargo test -q -p penstock-fabric --no-fail-fast --tests 2>&1)
  status=$?
  if grep -q '^error: could not compile\|^error\[' <<<"$output"; then echo "BROKEN   $name does not compile"; survivors=$((survivors + 1))
  elif [ $status = 0 ]; then echo "SURVIVED $name"; survivors=$((survivors + 1))
  else echo "caught   $name: $(grep -o '^    [a-z_:]*$' <<<"$output" | sort -u | tr -d ' ' | head -3 | paste -sd' ')"; fi
done
exit $((survivors > 0))
