#!/usr/bin/env bash
# The power-cut test: does the disk hold everything that a node acknowledged, at any moment?
#
#   chaos/powercut.sh [CUTS] [--unsynced]
#
# A node writes to an ext4 file system in an image file. At a random moment it is stopped and the image is copied: the copy
# is what a block device would hold had the power gone then (the kernel's cached writes are not in it). The copy is mounted,
# which replays the journal, and opened as the node would open it. Every acknowledged write must be there.
#
# --unsynced leaves the fdatasync out and shows that the test notices: it succeeds if at least one cut loses data.
#
# Needs root, loop devices and mkfs.ext4; exits with 77 where these are missing. QUORATE_CHAOS names the binary to use.
set -euo pipefail

cuts=5
unsynced=()
for arg in "$@"; do
  case "$arg" in
    --unsynced) unsynced=(--unsynced) ;;
    *[!0-9]* | '') echo "usage: $0 [CUTS] [--unsynced]" >&2; exit 64 ;;
    *) cuts=$arg ;;
  esac
done

skip() { echo "powercut: skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "needs root to mount a file system"
command -v mkfs.ext4 >/dev/null || skip "mkfs.ext4 is not installed"
command -v losetup >/dev/null || skip "losetup is not installed"
losetup -f >/dev/null 2>&1 || skip "no loop device"

here=$(cd "$(dirname "$0")" && pwd)
chaos=${QUORATE_CHAOS:-}
if [ -z "$chaos" ]; then
  (cd "$here/.." && cargo build --quiet -p quorate-chaos)
  chaos=${CARGO_TARGET_DIR:-$here/../target}/debug/quorate-chaos
fi

work=$(mktemp -d)
writer=
cleanup() {
  [ -z "$writer" ] || kill -KILL "$writer" 2>/dev/null || true
  for mount in "$work/live" "$work/after"; do
    ! mountpoint -q "$mount" 2>/dev/null || umount "$mount" || umount -l "$mount"
  done
  rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/live" "$work/after"

clean=0 lost=0 broken=0
for ((cut = 1; cut <= cuts; cut++)); do
  rm -f "$work"/*.img "$work/acknowledged" "$work/out"
  truncate -s 192M "$work/disk.img"
  mkfs.ext4 -q -F "$work/disk.img"
  mount -o loop "$work/disk.img" "$work/live" 2>/dev/null || skip "cannot mount a loop device"
  "$chaos" write "$work/live/data" "${unsynced[@]}" >"$work/out" 2>"$work/err" &
  writer=$!
  # Wait for the first acknowledged write, then 0.3 to 3.3 seconds.
  for ((i = 0; i < 400; i++)); do
    [ ! -s "$work/out" ] || break
    kill -0 "$writer" 2>/dev/null || { cat "$work/err" >&2; echo "powercut: the node ended" >&2; exit 1; }
    sleep 0.05
  done
  [ -s "$work/out" ] || { echo "powercut: no write was acknowledged within 20 s" >&2; exit 1; }
  sleep "$(printf '%d.%03d' $((RANDOM % 3)) $((300 + RANDOM % 700)))"
  kill -STOP "$writer"
  cp "$work/out" "$work/acknowledged"
  cp --sparse=always "$work/disk.img" "$work/cut.img"
  kill -KILL "$writer"
  wait "$writer" 2>/dev/null || true
  writer=
  umount "$work/live"
  mount -o loop "$work/cut.img" "$work/after"
  status=0
  verdict=$("$chaos" verify "$work/after/data" "$work/acknowledged" 2>&1) || status=$?
  umount "$work/after"
  case $status in
    0) clean=$((clean + 1)) ;;
    1) lost=$((lost + 1)) ;;
    *) broken=$((broken + 1)) ;;
  esac
  echo "cut $cut: $(tail -n 1 <<<"$verdict")"
done

echo "powercut: $cuts cuts, $clean clean, $lost with acknowledged writes gone, $broken that do not open"
if [ ${#unsynced[@]} -gt 0 ]; then
  [ $((lost + broken)) -gt 0 ] || { echo "powercut: the unsynced store was not caught; try more cuts" >&2; exit 1; }
else
  [ "$clean" = "$cuts" ]
fi
