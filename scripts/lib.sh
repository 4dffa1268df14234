# Shared by the scripts, which source it: messages, Debian packages, the series
# file, and git as the scripts use it.
# shellcheck shell=sh disable=SC2015,SC2034,SC2046,SC2086,SC2164

# Sorting, and the messages of other programs, are the same everywhere.
export LC_ALL=C

me=${0##*/}
top=$(cd "$(dirname "$0")/.." && pwd -P)
series=${SERIES:-6.12}
seriesdir=$top/series/$series
# Each series has a build folder of its own; vm/run knows that, too
case $series in
6.12) build=${BUILD:-build} ;;
*) build=${BUILD:-build/$series} ;;
esac
case $build in
/*) ;;
*) build=$top/$build ;;
esac
linux=$build/linux
shown=${linux#"$top"/}		# how messages name the tree
basetag=base-$series
tmp=$build/series.tmp		# see lock_build

# The Debian packages that are needed, as PACKAGE or PACKAGE:WHAT, where WHAT is
# the program or file by which to find it on a system without dpkg.
packages_tree="git xz-utils:xz"
packages_run="qemu-system-x86:qemu-system-x86_64 busybox-static:busybox
	gcc make git flex bison bc libelf-dev:/usr/include/gelf.h cpio
	xz-utils:xz rsync kmod:modprobe perl python3
	libcap-dev:/usr/include/sys/capability.h"
packages_arm64="gcc-aarch64-linux-gnu
	libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/stdio.h"
packages_check="sparse"
packages_model="spin gcc libc6-dev:/usr/include/stdio.h"

note() { printf '%s: %s\n' "$me" "$*" >&2; }
die() { note "$@"; exit 1; }

# quote WORD: as it has to be typed for a shell
quote() {
	case $1 in
	'' | *[!a-zA-Z0-9_./:@%+=,-]*) printf '%s\n' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/" ;;
	*) printf '%s\n' "$1" ;;
	esac
}

# What is called wrong is said at once, and not after a download or a build.
case $series in
*/* | .*) die "SERIES=$series: not the name of a series" ;;
esac
[ -r "$seriesdir/series" ] || die "SERIES=$series: no such series; there are:$(
	for f in "$top"/series/*/series; do f=${f%/series}; printf ' %s' "${f##*/}"; done)"
export SERIES="$series"
with=''	# behind a make that a message names
of=''	# behind the name of a file that each series has one of
[ "$series" = 6.12 ] || with=" SERIES=$series" of=-$series
case $series-$me in
6.12-* | *-tree | *-export | *-kernel | *-apply | *-mail | *-packages | *-qemu-arm64) ;;
*-check | *-check-pci | *-check-series | *-check-base-faults | *-check-arm64 | *-run) ;;
*-vmm | *-bench | *-evidence | *-model | *-coverage | *-kcsan | *-endurance | *-faults | *-fuzz) ;;
*) die "SERIES=$series: this is for 6.12 only" ;;
esac
case $me in
apply | packages | evidence) ;;
*)
	case $build in
	*[[:space:]:]*) die "kbuild cannot work in a folder with blanks or colons: $build; name another with BUILD=folder" ;;
	esac ;;
esac
case ${ACCEL-} in
'' | kvm | tcg) ;;
*) die "ACCEL=$ACCEL: neither kvm nor tcg" ;;
esac

# Scripts that work on the tree call this when they have checked their arguments. Make
# sets GET_TREE to have it brought up to date first.
get_tree() {
	[ -n "${GET_TREE-}" ] || return 0
	unset GET_TREE
	"$top/scripts/tree"
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		note "no sudo here; as root, run: $*"
		return 1
	fi
}

apt_update() {
	note "fetching Debian's package lists"
	as_root apt-get -qq update >&2
}

apt_install() {
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install -y --no-install-recommends "$@" >"$aptlog" 2>&1
}

# need_packages PACKAGE[:WHAT]...: installs those that are missing.
need_packages() {
	missing=
	if command -v dpkg-query >/dev/null; then
		there=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' \
			$(printf '%s\n' "$@" | cut -d: -f1) 2>/dev/null || :)"
		for p; do
			p=${p%%:*}
			case "$there$missing " in
			*" installed:$p "* | *" $p "*) ;;
			*) missing="$missing $p" ;;
			esac
		done
	else
		for p; do
			case ${p#*:} in
			/*) [ -e "${p#*:}" ] ;;
			*) command -v "${p#*:}" >/dev/null ;;
			esac || missing="$missing ${p#*:} (Debian: ${p%%:*})"
		done
		[ -z "$missing" ] ||
			die "not a Debian system; install what is missing yourself:$missing"
	fi
	[ -n "$missing" ] || return 0

	note "installing Debian packages:$missing"
	for p in $missing; do
		apt-cache policy "$p" | grep -q 'Candidate: [^(]' && continue
		apt_update || die "cannot fetch the package lists; is the network up?"
		break
	done
	aptlog=$(mktemp)
	# Lists that are older than the archive name files that are gone.
	if ! apt_install $missing && ! { apt_update && apt_install $missing; }; then
		tail -n 5 "$aptlog" >&2
		rm -f "$aptlog"
		die "could not install; try: apt-get install$missing"
	fi
	rm -f "$aptlog"
}

# Sets base, suite, prefix, parts, tracks and checks from the series file.
read_series() {
	file=$seriesdir/series base='' suite='' parts='' tracks='' checks=' ' line=0
	prefix="PATCH $series"
	[ -r "$file" ] || die "cannot read $file"
	while read -r key value rest || [ -n "$key" ]; do
		line=$((line + 1)) at="series/$series/series, line $line"
		case $key in '' | '#'*) continue ;; esac
		[ -n "$value" ] && [ -z "$rest" ] || die "$at: '$key' takes one word"
		case $key in
		base)
			case $value in
			"$series".*[!0-9]* | "$series".) die "$at: bad version '$value'" ;;
			"$series".*) base=$value ;;
			*) die "$at: '$value' is not a version of $series" ;;
			esac ;;
		suite)
			case $value in
			*[!a-z-]*) die "$at: bad name of a suite '$value'" ;;
			esac
			suite=$value ;;
		prefix)
			case $value in
			*[!A-Za-z0-9.-]*) die "$at: bad prefix of a subject '$value'" ;;
			esac
			prefix=$value ;;
		part)
			case $value in
			*[!a-zA-Z0-9_-]* | -*) die "$at: bad name of a part '$value'" ;;
			esac
			case " $parts " in
			*" $value "*) die "$at: part '$value' is there twice" ;;
			esac
			parts="$parts${parts:+ }$value" last=$value ;;
		check)
			case $value in
			scripts | model | bench | uapi | hostile | demo) checks="$checks$value " ;;
			*) die "$at: no check '$value'" ;;
			esac ;;
		track) tracks="$tracks${tracks:+ }$value" ;;
		# kbuild hands CF to a shell
		sparse)
			case $value in
			*"'"*) die "$at: an option for sparse without quotation marks, please" ;;
			esac
			export CF="'$value'" ;;
		*) die "$at: '$key' is none of base, suite, prefix, part, track, check, sparse" ;;
		esac
	done <"$file"
	[ -n "$base" ] && [ -n "$parts" ] && [ -n "$tracks" ] ||
		die "series/$series/series lacks a base, part or track line"
}

# patches DIR PART...: the patches of the parts in DIR, as PART/FILE, in order.
patches() (
	cd "$1"
	shift
	for part; do
		for p in "$part"/[0-9][0-9][0-9][0-9]-*.patch; do
			case $p in
			"$part"/0000-* | *'[0-9]'*) ;;
			*) printf '%s\n' "$p" ;;
			esac
		done
	done
)

# private_apt DIR NATIVE ARCHS STATUS: makes, in DIR, what an apt with a world of its own
# needs: nothing that it does is seen outside. DIR/sources.list is the caller's, and
# DIR/preferences. STATUS says which packages it takes for installed.
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
private_apt() {
	aptdir=$1
	mkdir -p "$aptdir/lists/partial" "$aptdir/cache/archives/partial"
	: >>"$aptdir/preferences"
	[ "$4" = "$aptdir/status" ] || cp "$4" "$aptdir/status"
	cat >"$aptdir/conf" <<-END
		Dir::Etc::SourceList "$aptdir/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::Etc::Preferences "$aptdir/preferences";
		Dir::Etc::PreferencesParts "/dev/null";
		Dir::State "$aptdir";
		Dir::State::Lists "$aptdir/lists";
		Dir::State::Status "$aptdir/status";
		Dir::Cache "$aptdir/cache";
		APT::Architecture "$2";
		#clear APT::Architectures;
		APT::Architectures { $3 };
		APT::Install-Recommends "false";
		APT::Install-Suggests "false";
		#clear APT::Update;
		APT::Update::Error-Mode "any";
		#clear DPkg;
	END
	[ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>"$aptdir/conf"
}
# apt COMMAND...: with the configuration of private_apt; its messages only if it fails
apt() {
	apt-get -c "$aptdir/conf" -q -y "$@" >"$aptdir/log" 2>&1 </dev/null && return 0
	tail -n 10 "$aptdir/log" >&2
	die "apt-get $* failed; is the network up? Then call again"
}

# What a base tree is made from, and all that a tree is made from.
base_state() (
	set -f
	printf '%s\n' "$base" $tracks
)
series_state() (
	base_state
	echo "$parts"
	cd "$seriesdir"
	sha256sum /dev/null $(patches . $parts)
)

# What figures name the series by.
series_id() { series_state | sha256sum | cut -c 1-12; }

# side_tree NAME [COMMIT]: from here on build/NAME is the build folder, with a kernel tree
# of its own in it that may be changed at will: the tracked files are as in that commit,
# or the last one, of build/linux, the others are hard links.
side=
side_tree() {
	isolate_git
	side=$1
	from=$linux
	build=$build/$1
	linux=$build/linux
	export BUILD="$build"
	mkdir -p "$build"
	head=$(git -C "$from" rev-parse --verify "${2:-HEAD}^{commit}") || die "no kernel tree in $from; get it with: make tree$with"
	base_is=$(git -C "$from" rev-parse "$basetag")
	if [ "$(cat "$build/.side" 2>/dev/null)" != "$base_is" ] || ! kgit rev-parse -q --verify HEAD >/dev/null 2>&1; then
		rm -rf "$linux" "$build/.side"
		note "making a second kernel tree in $linux"
		git -C "$from" worktree prune
		git -C "$from" worktree add -q -f -f --detach "$linux" "$head"
		for f in "$from"/* "$from"/.[!.]*; do
			[ "${f##*/}" = .git ] || cp -aln "$f" "$linux/"
		done
		echo "$base_is" >"$build/.side"
	fi
	kgit checkout -q -f --detach "$head"
	kgit clean -q -f -d
}

# build_selftests KERNEL [PROGRAM]...: all programs of the iommu selftests, or those
# alone, static, for build/kernel-KERNEL. Sets $selftests, the folder, and $programs,
# those that take no arguments.
build_selftests() {
	selftests=$build/selftests-$1
	headers=$build/kernel-$1/usr/include
	case $1 in
	arm64-*) arch='ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-' ;;
	*) arch= ;;
	esac
	shift
	programs=$*
	# What make above us passes down is not for this
	set -- env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u MAKEOVERRIDES -u ARCH -u CROSS_COMPILE \
		make -C "$linux/tools/testing/selftests/iommu" OUTPUT="$selftests" $arch \
		KHDR_INCLUDES="-isystem $headers" USERLDFLAGS=-static
	# Anew: its Makefile does not know all that the programs depend on
	rm -rf "$selftests"
	mkdir "$selftests"
	targets=$(for p in $programs; do printf ' %s' "$selftests/$p"; done)
	[ -n "$programs" ] || programs=$("$@" -s COLLECTION=iommu emit_tests | sed -n 's/^iommu://p')
	[ -n "$programs" ] || { note "the selftests have no programs"; return 1; }
	"$@" -j"$(nproc)" $targets >"$selftests/make.log" 2>&1 || { cat "$selftests/make.log" >&2; return 1; }
}

# The series as the C preprocessor has it
cpp_series=-DSERIES_$(echo "$series" | tr .- __)

# build_test KERNEL PROGRAM TO: one of tests/, which are not for the kernel tree, static, for build/kernel-KERNEL, with the
# headers of the selftests.
build_test() {
	gcc -O2 -Wall -Wno-unused-function -Wno-pointer-sign -D_GNU_SOURCE= "$cpp_series" -static \
		-isystem "$build/kernel-$1/usr/include" -I "$linux/tools/testing/selftests" \
		-I "$linux/tools/testing/selftests/iommu" -o "$3" "$top/tests/$2.c" -lpthread
}

# add_test KERNEL PROGRAM: to what build_selftests has built
add_test() {
	build_test "$1" "$2" "$selftests/$2" || return 1
	programs="$programs $2"
}

# plant NAME: with PLANT set in the environment, all that follows works in a side
# tree, the one that it already works in or a new one, with the fault in $planted:
# planted/NAME.patch, for another series than 6.12 planted/NAME-SERIES.patch.
plant() {
	[ -n "${PLANT-}" ] || return 0
	planted=$top/planted/$1$of.patch
	[ -n "$side" ] || side_tree planted
	kgit apply "$planted" || die "${planted#"$top/"} does not fit"
}

# The version of the kernel tree in a folder; fails if it is none.
kernel_version() {
	[ -f "$1/Makefile" ] && [ -f "$1/Kbuild" ] && awk '
		$2 == "=" && $1 == "VERSION" { v = $3 }
		$2 == "=" && $1 == "PATCHLEVEL" { p = $3 }
		$2 == "=" && $1 == "SUBLEVEL" { s = $3; exit }
		END { if (v == "" || p == "" || s == "") exit 1; print v "." p "." s }
	' "$1/Makefile"
}

# From here on git works in the repository that it is told to, whatever the
# environment says. The user's settings stay.
forget_git() {
	unset $(git rev-parse --local-env-vars) GIT_EXTERNAL_DIFF GIT_DIFF_OPTS \
		GIT_TRACE GIT_NAMESPACE GIT_CEILING_DIRECTORIES
}

# From here on git knows only what is said here: nothing of the user's or the
# system's settings, so that all get the same commits and files.
isolate_git() {
	forget_git
	export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
	export GIT_ATTR_NOSYSTEM=1 GIT_GLOB_PATHSPECS=1 GIT_EDITOR=: GIT_PAGER=cat
	export GIT_COMMITTER_NAME=Linux GIT_COMMITTER_EMAIL=base@localhost
	GIT_CONFIG_COUNT=0
	while read -r key value; do
		export "GIT_CONFIG_KEY_$GIT_CONFIG_COUNT=$key"
		export "GIT_CONFIG_VALUE_$GIT_CONFIG_COUNT=$value"
		GIT_CONFIG_COUNT=$((GIT_CONFIG_COUNT + 1))
	done <<-END
		advice.detachedHead false
		commit.gpgSign false
		core.attributesFile /dev/null
		core.autocrlf false
		core.excludesFile /dev/null
		core.fsmonitor false
		core.hooksPath /dev/null
		core.quotePath false
		diff.mnemonicPrefix false
		diff.noprefix false
		diff.statGraphWidth 0
		diff.statNameWidth 0
		diff.suppressBlankEmpty false
		i18n.commitEncoding UTF-8
		i18n.logOutputEncoding UTF-8
	END
	export GIT_CONFIG_COUNT
}

kgit() { git -C "$linux" "$@"; }

# One at a time in a build folder: the lock goes when the script does. What is
# not finished is in $tmp only, which neither a script nor its end leaves there.
lock_build() {
	mkdir -p "$build"
	exec 9>"$build/series.lock"
	flock -n 9 || { note "waiting for another call that works in $build"; flock 9; }
	trap 'exit 130' HUP INT TERM
	trap 'rm -rf "$tmp"' EXIT
	rm -rf "$tmp"
	mkdir "$tmp"
}

# replay DIR: applies the patches in DIR to the base, away from the work tree,
# and prints "PART COMMIT" for each part. The commits are the same everywhere.
hint=
replay() {
	wt=$tmp/replay
	# Twice -f: what a killed call left registered may even be locked.
	kgit worktree add -q -f -f --detach "$wt" "$basetag"
	for part in $parts; do
		for p in $(patches "$1" "$part"); do
			git -C "$wt" am -q --committer-date-is-author-date \
				--keep-non-patch --no-scissors --no-3way --no-signoff \
				--no-keep-cr --whitespace=nowarn --no-gpg-sign \
				<"$1/$p" >"$wt.log" 2>&1 && continue
			grep '^error: ' "$wt.log" >&2 || cat "$wt.log" >&2
			grep -q 'not exist in index' "$wt.log" &&
				note "(a file the patch changes must be under a 'track' path of series/$series/series)"
			die "$p does not fit on $(kgit log -1 --format=%s "$basetag")$hint"
		done
		printf '%s %s\n' "$part" "$(git -C "$wt" rev-parse HEAD)"
	done
	kgit worktree remove -f "$wt"
}

# An operation that git has begun in the tree and not finished, if any.
unfinished() {
	for x in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD; do
		[ ! -e "$linux/.git/$x" ] || echo "a rebase, am, merge or the like is not finished (.git/$x)"
	done
}

# differing COMMIT: files under the tracked paths that are not as in COMMIT, new
# ones included. Looks with a copy of the index, which knows unchanged files by
# their dates.
differing() (
	cp "$linux/.git/index" "$tmp/index"
	export GIT_INDEX_FILE="$tmp/index"
	kgit read-tree --reset "$1"
	kgit update-index -q --refresh >/dev/null || :
	{
		kgit diff-files --name-only
		set -f
		kgit ls-files --others --exclude-standard -- $tracks
	} | sort -u
)
