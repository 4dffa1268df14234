# Shared by scripts/check and scripts/check-arm64, which source it: one stream of TAP,
# whose last line alone is "N passed, N failed, N skipped", from checks on the host and
# from the kernel's selftests in the VM.
# shellcheck shell=sh disable=SC2015,SC2046,SC2086,SC2154,SC2317

unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES ARCH KBUILD_OUTPUT OUTPUT
export BUILD="$build"

# Seconds after which a selftest program is taken for hanging.
limit=${CHECK_LIMIT:-1800}
case $limit in '' | 0* | *[!0-9]*) die "CHECK_LIMIT=$limit: not a number of seconds" ;; esac

mkdir -p "$build"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM
begin=$(date +%s) passed=0 failed=0 skipped=0
: >"$work/list"

say() { note "$(($(date +%s) - begin)) s: $*"; }

# emit FILE: prints its lines, with the results numbered, and counts them. As they are,
# they go to $work/results.
emit() {
	cat "$1" >>"$work/results"
	while IFS= read -r line; do
		case $line in
		'skip '*)
			skipped=$((skipped + 1))
			echo "# skipped: ${line#skip }" >>"$work/list" ;;
		'ok '*) passed=$((passed + 1)) ;;
		'not ok '*)
			failed=$((failed + 1))
			echo "# failed: ${line#not ok }" >>"$work/list" ;;
		esac
		n=$((passed + failed + skipped))
		case $line in
		'skip '*) printf 'ok %s - %s\n' $n "${line#skip }" ;;
		'ok '*) printf 'ok %s - %s\n' $n "${line#ok }" ;;
		'not ok '*) printf 'not ok %s - %s\n' $n "${line#not ok }" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done <"$1"
}

# one WHAT STATUS [FILE]: one result, good if STATUS is 0; else FILE tells why not.
one() {
	if [ "$2" = 0 ]; then
		echo "ok $1"
	else
		echo "not ok $1"
		[ $# -lt 3 ] || tail -n 100 "$3" | sed 's/^/# /'
	fi >"$work/one"
	emit "$work/one"
}

# take NAME STATUS FILE: the TAP in FILE, of a program that ended with STATUS. Fewer
# results than planned, or a bad end without a bad result, is a bad result, too. What
# is said about a bad result is shown: after it, or before it with before=1.
take() {
	awk -v name="$1" -v status="$2" -v before="${before-}" '
	function result(ok, what, why) {
		printf "%s %s: %s%s\n", !ok ? "not ok" : why ~ /^# *[Ss][Kk][Ii][Pp]/ ? "skip" : "ok",
			name, what, why == "" ? "" : " " why
	}
	function show(max,  i) {
		for (i = held > max ? held - max + 1 : 1; i <= held; i++) print "# " hold[i]
		held = 0
	}
	/^1\.\.[0-9]+/ {
		plans++
		plan = substr($1, 4) + 0
		if (plan == 0 && match($0, /# *[Ss][Kk][Ii][Pp]/)) result(1, "all of it", substr($0, RSTART))
		next
	}
	/^(not )?ok( |$)/ {
		ok = !/^not/
		sub(/^(not )?ok */, ""); sub(/^[0-9]+ */, ""); sub(/^- /, "")
		why = ""
		if (match($0, / *# /)) { why = substr($0, RSTART); sub(/^ */, "", why); $0 = substr($0, 1, RSTART - 1) }
		got++
		bad += !ok
		result(ok, $0, why)
		if (before && !ok) show(100)
		held = 0
		next_to_bad = !ok
		next
	}
	/^TAP version/ || /^$/ { next }
	/^Bail out!/ { bailed = 1 }
	{
		sub(/^# ?/, "")
		if (!before && next_to_bad) print "# " $0
		else hold[++held] = $0
	}
	END {
		if (status == "none") complaint = "it did not end"
		else if (plans != 1) complaint = (plans ? "more than one plan" : "no plan") ", exit status " status
		else if (got + 0 != plan) complaint = "it planned " plan " results and gave " (got + 0) ", exit status " status
		else if (bailed) complaint = "it bailed out"
		else if (status > 1 || status == 1 && !bad) complaint = "exit status " status
		result(complaint == "", "ran to its end")
		if (complaint != "") { print "# " complaint; show(30) }
	}' "$3" >"$work/take"
	emit "$work/take"
}

finish() {
	echo "1..$((passed + failed + skipped))"
	cat "$work/list"
	say "done"
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" = 0 ] || exit 1
	exit 0
}

# step WHAT COMMAND...: a step that only counts when it goes wrong.
step() {
	what=$1
	shift
	say "$what"
	"$@" >&2 && return 0
	one "$what" 1
	return 1
}

# host NAME COMMAND...: a check that prints TAP
host() {
	name=$1 rc=0
	shift
	say "$name"
	"$@" >"$work/host" || rc=$?
	take "$name" $rc "$work/host"
}

# guest_script MODULES PROGRAMS: what the guest runs: all programs in one boot, with
# marks that tell them apart, also in the kernel's log. A \n first, for a program that
# stops within a line. KUnit's tests ran before, while the kernel started, or when the
# modules were loaded.
guest_script() {
	cat <<-END
		#!/bin/sh
		for m in $1; do insmod "/root/\$m"; done
		for s in /sys/kernel/debug/kunit/*/results; do
			[ -f "\$s" ] || continue
			p=\${s%/results}
			p=kunit.\${p##*/}
			echo "@@ begin \$p"
			cat "\$s"
			echo "@@ end \$p \$?"
		done
		# A module of tests keeps what it tests from being unloaded
		for m in $1; do
			case \$m in *-test.ko) rmmod "\${m%.ko}" ;; esac
		done
		for p in $2; do
			echo "check: \$p begins" >/dev/kmsg
			printf '\\n@@ begin %s\\n' "\$p"
			timeout -k 5 $limit "/root/\$p"
			printf '\\n@@ end %s %s\\n' "\$p" "\$?"
		done
		echo "check: all have ended" >/dev/kmsg
	END
}

# in_vm KERNEL MODULES ARG...: all $programs in the VM of vm/run ARG..., which boots
# build/kernel-KERNEL; the guest loads the modules first.
in_vm() {
	kernel=$build/kernel-$1
	# shellcheck disable=SC2086,SC2116
	guest_script "$2" "$(echo $programs)" >"$work/selftests.sh"
	chmod +x "$work/selftests.sh"
	shift 2
	count=0
	for p in $programs; do
		set -- "$@" -f "$selftests/$p"
		count=$((count + 1))
	done
	# The tests look for the kernel's modules beside them.
	# shellcheck disable=SC2044
	for m in $(find "$kernel/drivers/iommu" -name '*.ko'); do
		set -- "$@" -f "$m"
	done
	{
		rc=0
		"$top/vm/run" -t $((count * limit + 600)) "$@" -f "$work/selftests.sh" \
			-- /root/selftests.sh 2>"$work/vm.err" </dev/null || rc=$?
		echo $rc >"$work/vm.rc"
	} | {
		results=0
		while IFS= read -r line || [ -n "$line" ]; do
			printf '%s\n' "$line"
			case $line in
			'@@ begin '*) say "selftests: ${line#@@ begin }" ;;
			'ok '* | 'not ok '*)
				results=$((results + 1))
				[ $((results % 50)) != 0 ] || say "selftests: $results results"
				;;
			esac
		done
	} >"$work/vm.out"

	suites=$(sed -n 's/^@@ begin \(kunit\..*\)/\1/p' "$work/vm.out")
	! grep -q '^CONFIG_KUNIT=y' "$kernel/.config" || [ -n "$suites" ] ||
		one "kunit: the kernel has tests" 1
	for p in $suites $programs; do
		awk -v p="$p" -v rcfile="$work/rc" '
			BEGIN { rc = "none" }
			$1 == "@@" && $3 == p { on = $2 == "begin"; if ($2 == "end") rc = $4; next }
			on
			END { print rc >rcfile }
		' "$work/vm.out" >"$work/program"
		rc=$(cat "$work/rc")
		case $p in
		kunit.*)
			# A suite is one test with subtests, indented. Only these count.
			! grep -q '^not ok' "$work/program" || rc=1
			sed -n 's/^    \([^ ]\)/\1/p' "$work/program" >"$work/suite"
			before=1 take "kunit/${p#kunit.}" "$rc" "$work/suite"
			;;
		*) before=1 take "selftests/$p" "$rc" "$work/program" ;;
		esac
	done

	rc=$(cat "$work/vm.rc")
	case $rc in
	120)
		# Whose time was it when the first report came?
		log=$(sed -n 's/.*; its log: //p' "$work/vm.err" | tail -n 1)
		first=$(head -n 1 "$work/vm.err")
		[ ! -r "$log" ] || awk -v first="$first" '
			/\] check: / { last = $0; sub(/.*\] check: /, "", last) }
			$0 == first { print "the last mark before it: " last; exit }
		' "$log" >>"$work/vm.err"
		one "selftests: the kernel log is clean" 1 "$work/vm.err" ;;
	0) one "selftests: the kernel log is clean" 0 ;;
	*)
		echo "vm/run: exit status $rc" >>"$work/vm.err"
		one "selftests: the VM ran to its end" 1 "$work/vm.err" ;;
	esac
}
