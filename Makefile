# Two commands set everything up on a fresh machine that has Go: `make demo` runs the main job,
# `make test` passes the tests. `make help` lists the rest.

GO      ?= go
GOFLAGS ?=
BIN     := bin/coppice
PKGS    := ./...

# What the tests and demos use of the system: command=Debian package.
NEEDS   := fusermount3=fuse3 rsync=rsync setfattr=attr setfacl=acl setcap=libcap2-bin nginx=nginx-light \
           zstd=zstd xz=xz-utils unshare=util-linux setpriv=util-linux gcc=gcc libc6-dev:/usr/include/stdio.h=libc6-dev
NEEDS_OS := debootstrap=debootstrap curl=curl bc=bc time=time ip=iproute2

.PHONY: help build test test-long bench bench-patch bench-links demo demo-os demo-laptop demo-agent docs fmt needs needs-os clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## build bin/coppice
	$(GO) build -o $(BIN) ./cmd/coppice

test: needs ## run all tests (about 5 minutes on two cores)
	$(GO) vet $(PKGS)
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt'ed:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) test -race -timeout 14m $(PKGS)

test-long: needs ## run the long tests too: every fuzzer for a minute, the crash tests at every step
	COPPICE_TEST_LONG=1 $(GO) test -timeout 60m $(PKGS)
	@set -e; for pkg in $$($(GO) list $(PKGS)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime 60s $$pkg; done; done

bench: build needs needs-os ## measure against native file systems; prints the table of docs/PERFORMANCE.md
	internal/demo/bench.sh

bench-patch: build needs needs-os ## the same for patching: transactions, deltas, re-imports
	internal/demo/bench-patch.sh

bench-links: build needs needs-os ## measure cold starts and hydration through slow links
	$(GO) build -o bin/slowlink ./internal/slowlink
	internal/demo/links.sh

demo: build ## the main job on the Go toolchain: import, publish, serve, mount, compile, swap, roll back
	internal/demo/demo.sh

demo-agent: build ## an agent that activates in a window, reverts by itself, works offline and is killed
	internal/demo/demo-agent.sh

demo-os: build needs-os ## the same with a Debian tree: chroot into the mount and run its programs
	internal/demo/demo-os.sh

demo-laptop: build needs needs-os ## a laptop that leaves the network, in network namespaces
	$(GO) build -o bin/slowlink ./internal/slowlink
	internal/demo/demo-laptop.sh

docs: build ## write docs/CLI.md and docs/man from the command table
	$(BIN) docs docs

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

# Installs what is missing if it may, else says exactly what that is.
define install
	@missing=; for n in $(1); do cmd=$${n%%=*}; pkg=$${n##*=}; \
	  case $$cmd in *:*) test -e "$${cmd#*:}" || missing="$$missing $$pkg";; \
	  *) PATH="$$PATH:/usr/sbin:/sbin" command -v $$cmd >/dev/null || missing="$$missing $$pkg";; esac; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "missing packages (Debian names):$$missing"; exit 1; fi; fi
endef

needs:
	$(call install,$(NEEDS))
	@test -c /dev/fuse || { echo "missing: /dev/fuse (modprobe fuse)"; exit 1; }
	@test "$$(stat -c %a /dev/fuse)" = 666 || chmod 666 /dev/fuse || { echo "/dev/fuse is closed to users; distributions give it mode 666"; exit 1; }
	@test "$$(id -u)" = 0 || { echo "missing: root; the tests mount file systems and make devices"; exit 1; }

needs-os:
	$(call install,$(NEEDS_OS))

clean: ## remove what was built
	rm -rf bin
