# Each target calls a script; see there. Variables, on the command line or in
# the environment:
#   BUILD    the folder for all that is made (default: build)
#   VARIANT  the kernel to build, one of vm/*.config (default: plain)
#   ARCH     what to build it for: x86_64 (default) or arm64
#   ACCEL    how the virtual machines run: kvm or tcg
#   TREE     for apply: the kernel tree
#   PLANT    1: what measures has to find a planted fault (planted/)
# Those of one target are explained in its script.

VARIANT ?= plain
ARCH ?= x86_64
MAKEFLAGS += --no-print-directory

.PHONY: help demo demo-vmm check check-arm64 check-base-faults check-series tree export kernel apply \
	packages bench bench-parallel evidence coverage kcsan leaks faults model mutants fuzz endurance

help:		## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28

demo:		## show what the series does, in virtual machines
	@demo/run

demo-vmm:	## show QEMU 11 run a VM on the series, on an emulated arm64 machine
	@demo/vmm

check:		## run all checks
	@scripts/check

check-arm64:	## run the tests of the SMMUv3 driver, on an emulated arm64 machine
	@scripts/check-arm64

check-base-faults:	## show that the base has the faults that parts 2 and 3 mend
	@scripts/check-base-faults

check-series: tree	## check the series patch by patch (make check does it as one change)
	@scripts/check-series

bench:		## what each call costs, in instructions (PEER=dir, TRACE=row, PLOT=1, ARCH=arm64)
	@scripts/bench -a '$(ARCH)'

bench-parallel:	## what two threads get done in the time of one
	@scripts/bench parallel

evidence:	## all of the following, and their planted faults; takes a day
	@scripts/evidence

coverage:	## which lines and branches of the series the tests run
	@scripts/coverage

kcsan:		## look for data races (KCSAN_TIME=seconds)
	@scripts/kcsan

leaks:		## let an IOMMU go away 100,000 times, and look for what is lost
	@scripts/endurance leaks

faults: tree	## let each call fail at each of its points
	@scripts/faults

model: tree	## check the model of references and revocation with spin
	@scripts/model

mutants: tree	## break the code in small ways: the tests must notice
	@scripts/mutants $(MUTANT)

fuzz: tree	## random calls, guided by coverage (FUZZ_TIME=seconds)
	@scripts/fuzz

endurance:	## a million hotplugs, 100,000 registrations of an IOMMU, with traffic
	@scripts/endurance endurance

tree:		## get the kernel source and apply the series, in build/linux
	@scripts/tree

export:		## write series/ and linux/ from the commits in build/linux
	@scripts/export

kernel: tree	## build the kernel (VARIANT=plain, debug, ...; ARCH=x86_64, arm64)
	@scripts/kernel -a '$(ARCH)' '$(VARIANT)'

apply:		## apply the series to a kernel tree of your own (TREE=folder)
	@scripts/apply "$$TREE"

packages:	## install the Debian packages that make check needs
	@scripts/packages
