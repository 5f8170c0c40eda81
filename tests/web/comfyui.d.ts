// The types of the two modules of ComfyUI's page that web/*.js imports, as far as they are used there. What older or
// newer frontends may lack is optional.

interface ComfyExtension {
  name: string;
  init?(): void | Promise<void>;
  setup?(): void | Promise<void>;
  nodeCreated?(node: any): void;
  onNodeOutputsUpdated?(outputs: Record<string, any>): void;
}

declare module "*/scripts/app.js" {
  export const app: {
    registerExtension(extension: ComfyExtension): void;
    queuePrompt(number: number, batchCount?: number): Promise<boolean>;
    refreshComboInNodes?(): Promise<void>;
    graph: any;
    rootGraph?: any;
    canvas?: any;
    extensionManager?: any;
    ui?: any;
    nodePreviewImages?: Record<string, any>;
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    addEventListener(kind: string, listener: (event: any) => void): void;
    dispatchCustomEvent?(kind: string, detail: unknown): void;
    queuePrompt?: (...values: any[]) => Promise<any>;
  };
}
