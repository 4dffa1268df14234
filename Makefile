# Each target calls a script; see there. Variables, on the command line or in
# the environment:
#   SERIES   the series, one of series/ (default: 6.12)
#   BUILD    the folder for all that is made (default: build; build/7.3 for SERIES=7.3)
#   VARIANT  the kernel to build, one of vm/*.config (default: plain)
#   ARCH     what to build it for: x86_64 (default), arm64, or pci, an x86_64 with PCI
#   ACCEL    how the virtual machines run: kvm or tcg
#   TREE     for apply: the kernel tree
#   PLANT    1: what measures has to find a planted fault (planted/)
# Those of one target are explained in its script.

export SERIES ?= 6.12
VARIANT ?= plain
ARCH ?= x86_64
MAKEFLAGS += --no-print-directory

.PHONY: help demo demo-vmm check check-arm64 check-pci check-base-faults check-series tree export kernel apply mail \
	packages answers bench bench-parallel evidence coverage kcsan leaks faults model mutants fuzz endurance

help:		## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28
	@echo
	@echo 'SERIES=7.3 behind it is for the other series. More such words stand at the top of the Makefile.'

demo:		## show what the series does, in virtual machines
	@demo/run

demo-vmm:	## show QEMU 11 run a VM on the series, on an emulated arm64 machine
	@demo/vmm

check:		## run the checks on x86 without PCI; see also check-arm64, check-pci, check-base-faults, check-series
	@scripts/check

check-arm64:	## run the tests of the SMMUv3 driver, on an emulated arm64 machine
	@scripts/check-arm64

check-pci:	## run the tests with PCI devices behind QEMU's IOMMUs for x86 (PCI_ROUNDS=number)
	@scripts/check-pci

check-base-faults:	## show that the base has the faults that the series mends (ROWS=regex)
	@scripts/check-base-faults

check-series:	## check the series patch by patch (make check does it as one change)
	@GET_TREE=1 scripts/check-series

answers:	## what iommufd says about each IOMMU that QEMU has (RECORD=write: into docs/vmm.md)
	@scripts/answers

bench:		## what each call costs beside mainline (RECORD=write: into docs/cost.md; PEER=dir, TRACE=row, PLOT=1, ARCH=arm64)
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

faults:	## let each call fail at each of its points
	@GET_TREE=1 scripts/faults

model:	## check the model of references and revocation with spin
	@GET_TREE=1 scripts/model

mutants:	## break the code in small ways: the tests must notice
	@GET_TREE=1 scripts/mutants $(MUTANT)

fuzz:	## random calls, guided by coverage (FUZZ_TIME=seconds)
	@GET_TREE=1 scripts/fuzz

endurance:	## a million hotplugs, 100,000 registrations of an IOMMU, with traffic
	@scripts/endurance endurance

tree:		## get the kernel source and apply the series, in build/linux
	@scripts/tree

export:		## write series/SERIES/ and linux/SERIES/ from the commits in build/linux
	@scripts/export

kernel:	## build the kernel (VARIANT=plain, debug, ...; ARCH=x86_64, arm64, pci)
	@GET_TREE=1 scripts/kernel -a '$(ARCH)' '$(VARIANT)'

apply:		## apply the series to a kernel tree of your own (TREE=folder; UNDO=1 takes it out again)
	@scripts/apply $${UNDO:+-R} "$$TREE"

mail:		## write a part as mail, and send nothing (PART=1-fixes FROM="Name <address>"; V=2; PART=all: the letter about all)
	@GET_TREE=1 scripts/mail

packages:	## install the Debian packages that make check needs
	@scripts/packages
