package main

import (
	"context"
	"slices"
	"strings"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/oci"
	"coppice.dev/coppice/namespace"
)

// check refuses a form that there is not.
func (f importFlags) check() error {
	if forms := []string{"", "dir", "tar", "oci"}; !slices.Contains(forms, f.format) {
		return namespace.WithHint(usage("--format %q", f.format), "dir, tar or oci")
	}
	return nil
}

// openImage opens the container image src as a source, having fetched it if it is in a registry.
func (a *app) openImage(ctx context.Context, src string, o oci.Options) (builder.Source, *oci.Image, func(), error) {
	bar := a.progress("fetching "+src, "layers")
	defer bar.Close()
	o.Progress = bar.Import
	if src == "-" {
		src = "/dev/stdin"
	}
	image, err := oci.Open(ctx, src, o)
	if err != nil {
		return nil, nil, nil, err
	}
	done := func() {
		if err := image.Close(); err != nil {
			a.note("%v", err)
		}
	}
	return image.Source(), image, done, nil
}

// noteImage prints what an imported image says of itself and the tree does not keep.
func (a *app) noteImage(image *oci.Image) {
	if image == nil {
		return
	}
	a.note("image for %s %s", image.Platform, image.Digest)
	for _, line := range []struct {
		what  string
		words []string
	}{
		{"entrypoint", image.Entrypoint}, {"command", image.Cmd}, {"environment", image.Env},
		{"user", []string{image.User}}, {"directory", []string{image.WorkingDir}}, {"labels", pairs(image.Labels)},
	} {
		if text := strings.TrimSpace(strings.Join(line.words, " ")); text != "" {
			a.note("  %s: %q", line.what, text)
		}
	}
}

// pairs returns "key=value" of each, sorted.
func pairs(m map[string]string) []string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return all
}
